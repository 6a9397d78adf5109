import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synq_fast.errors import RecipeError
from synq_fast.finetune.losses import Cam
from synq_fast.finetune.settings import Finetune
from synq_fast.recipes import (
    Recipe,
    dump_recipe,
    list_recipes,
    load_recipe,
    parse_value,
)
from synq_fast.synthesis.settings import Synthesis


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str):
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_shipped_recipes_are_listed_in_order():
    names = list_recipes()
    assert "synq-digits" in names
    assert names == sorted(names)


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipe_loads_and_says_what_it_is(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary


@pytest.mark.parametrize("name", list_recipes())
def test_dumped_recipe_reads_back_unchanged(name, recipe_file):
    recipe = load_recipe(name)
    assert load_recipe(recipe_file(dump_recipe(recipe))) == recipe


@given(
    steps=st.integers(0, 10**6),
    rate=st.floats(1e-12, 1e3),
    low=st.floats(1e-3, 1),
    milestones=st.lists(st.floats(0, 1), max_size=4),
    leaves=st.lists(st.text(max_size=8), max_size=3),
    summary=st.text(st.characters(codec="utf-8"), max_size=30),
)
def test_any_recipe_survives_a_round_trip(
    tmp_path_factory, steps, rate, low, milestones, leaves, summary
):
    overrides = {
        "summary": summary,
        "finetune.steps": steps,
        "finetune.learning_rate": rate,
        "finetune.crop_scale": [low, 1.0],
        "finetune.milestones": milestones,
        "quantization.leaf_modules": leaves,
    }
    recipe = load_recipe("synq-digits", overrides)
    assert (recipe.finetune.steps, recipe.finetune.learning_rate) == (steps, rate)
    path = tmp_path_factory.mktemp("recipe") / "synq-digits.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_recipe_of_a_path_takes_its_name_and_the_defaults(recipe_file):
    recipe = load_recipe(recipe_file("[finetune]\nsteps = 7\n"))
    assert recipe == Recipe("mine", finetune=Finetune(steps=7))
    assert load_recipe(str(recipe_file("[finetune]\nsteps = 7\n"))) == recipe


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "cp1252"]
)
def test_recipe_in_other_encodings(tmp_path, encoding):
    path = tmp_path / "mine.toml"
    path.write_bytes('summary = "schön"\r\n'.encode(encoding))
    wrong = {
        "cp1252": r"not UTF-8 text \(byte 0xf6 in line 1\)",
        "utf-16-le": "zero bytes",
        "utf-16-be": "zero bytes",
    }
    if encoding in wrong:
        with pytest.raises(RecipeError, match=rf"mine\.toml .*{wrong[encoding]}.*save it as UTF-8"):
            load_recipe(path)
    else:
        assert load_recipe(path) == Recipe("mine", "schön")


def test_recipe_below_the_home_folder(recipe_file, monkeypatch):
    path = recipe_file("[finetune]\nsteps = 7\n")
    monkeypatch.setenv("HOME", str(path.parent))
    assert load_recipe("~/mine.toml").finetune.steps == 7
    with pytest.raises(RecipeError, match=r'no recipe "~nobody-of-that-name/mine\.toml"'):
        load_recipe("~nobody-of-that-name/mine.toml")


@pytest.mark.parametrize("thing", [3, None, {"finetune.steps": 3}, ["synq-digits"]])
def test_what_is_no_recipe(thing):
    with pytest.raises(RecipeError, match="a name, a path or a Recipe"):
        load_recipe(thing)


@pytest.mark.parametrize("overrides", [["finetune.steps"], {1: 2}, {"finetune": {2: 3}}])
def test_what_is_no_override(overrides):
    with pytest.raises(RecipeError, match="values by dotted key"):
        load_recipe("synq-digits", overrides)


def test_a_section_of_overrides_keeps_the_other_values():
    plain = load_recipe("synq-digits")
    nested = load_recipe("synq-digits", {"finetune": {"steps": 7, "cam": {"weight": 3}}})
    assert nested == load_recipe("synq-digits", {"finetune.steps": 7, "finetune.cam.weight": 3})
    assert nested.finetune.batch_size == plain.finetune.batch_size == 32


def test_values_of_other_libraries_count_as_plain_ones():
    class Name(str):
        __slots__ = ()

    given = {
        "finetune.steps": np.int64(7),
        "finetune.learning_rate": np.float64(0.5),
        "finetune.nesterov": np.bool_(False),
        "finetune.crop_scale": np.array([0.25, 1.0]),
        "finetune.schedule": Name("constant"),
        "quantization.range": np.str_("mse"),
    }
    recipe = load_recipe("synq-digits", given)
    finetune = recipe.finetune
    assert (finetune.steps, finetune.learning_rate, finetune.nesterov) == (7, 0.5, False)
    assert (finetune.crop_scale, finetune.schedule) == ((0.25, 1.0), "constant")
    kinds = (int, float, bool, str)
    values = (finetune.steps, finetune.learning_rate, finetune.nesterov, finetune.schedule)
    assert tuple(map(type, values)) == kinds
    assert dump_recipe(recipe) == dump_recipe(load_recipe(recipe))
    with pytest.raises(RecipeError, match="a whole number"):
        load_recipe("synq-digits", {"finetune.steps": np.float32(2.5)})


def test_overrides_leave_a_given_recipe_alone():
    original = Recipe("own", synthesis=Synthesis(images=8))
    changed = load_recipe(original, {"synthesis.images": 9})
    assert (original.synthesis.images, changed.synthesis.images) == (8, 9)
    assert dataclasses.replace(changed, synthesis=original.synthesis) == original


def test_whole_number_is_taken_where_a_number_is_meant():
    rate = load_recipe("synq-digits", {"finetune.learning_rate": 1}).finetune.learning_rate
    assert rate == 1.0 and type(rate) is float


def test_deep_override_reaches_its_section():
    recipe = load_recipe("synq-digits", {"finetune.cam.target": "label"})
    assert recipe.finetune.loss(Cam).target == "label"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"finetune.stepz": 3}, ['"finetune.stepz"', 'did you mean "finetune.steps"']),
        ({"fientune.steps": 3}, ['"fientune"', 'did you mean "finetune"']),
        ({"finetune.cam.wieght": 3}, ['did you mean "finetune.cam.weight"']),
        ({"zzzz": 3}, ['unknown key "zzzz"', "known here: name"]),
        ({"": 3}, ['unknown key ""']),
    ],
    ids=["leaf", "section", "deep", "nothing near", "empty"],
)
def test_unknown_key_is_named_with_the_nearest_one(overrides, parts):
    with pytest.raises(RecipeError) as caught:
        load_recipe("synq-digits", overrides)
    for part in parts:
        assert part in str(caught.value)


def test_no_suggestion_where_nothing_is_near():
    with pytest.raises(RecipeError) as caught:
        load_recipe("synq-digits", {"zzzz": 3})
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("finetune.steps", 2.5, "a whole number"),
        ("finetune.steps", True, "a whole number"),
        ("finetune.steps", "many", "a whole number"),
        ("finetune.learning_rate", "fast", "a number"),
        ("finetune.learning_rate", False, "a number"),
        ("finetune.nesterov", 1, "true or false"),
        ("finetune.schedule", 3, "a text"),
        ("finetune.schedule", "linear", "one of constant, cosine, step"),
        ("finetune", 3, "a section"),
        ("finetune.crop_scale", 0.5, "a list of 2 values"),
        ("finetune.crop_scale", [0.5], "a list of 2 values"),
        ("finetune.milestones", 0.5, "a list of any number of values"),
        ("quantization.leaf_modules", "layer1", "a list of any number of values"),
        ("quantization.leaf_modules", [3], "a text"),
    ],
)
def test_wrong_type_says_what_is_taken(key, value, expected):
    with pytest.raises(RecipeError, match=f"{key} .*{expected}"):
        load_recipe("synq-digits", {key: value})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("finetune.steps", -1, "0 to 100000000"),
        ("synthesis.images", 0, "1 to 100000000"),
        ("synthesis.batch_size", 1, "2 to 65536"),
        ("finetune.momentum", 1.5, r"0 to 0\.9999"),
        ("finetune.distillation.difficulty_threshold", -0.1, "0 to 1"),
        ("quantization.shrink", 0, "0.001 to 1"),
        ("finetune.crop_scale", [0.5, 1.5], r"0\.001 to 1"),
        ("finetune.crop_scale", [0.9, 0.5], "low <= high"),
        ("synthesis.augment_scale", [0, 1], r"0\.001 to 1"),
        ("finetune.learning_rate", math.nan, "must be finite"),
        ("finetune.learning_rate", math.inf, "must be finite"),
        ("finetune.learning_rate", -math.inf, "must be finite"),
        ("finetune.milestones", [math.nan], "must be finite"),
        ("finetune.crop_scale", [math.nan, 1], "must be finite"),
        ("finetune.learning_rate", 10**400, "a number"),
    ],
)
def test_out_of_bounds_says_the_bounds(key, value, expected):
    with pytest.raises(RecipeError, match=f"{key} .*{expected}"):
        load_recipe("synq-digits", {key: value})


@pytest.mark.parametrize("key", ["finetune.steps.more", "summary.more", "finetune.steps."])
def test_override_below_a_value_is_refused(key):
    with pytest.raises(RecipeError, match=key.split(".")[-2]):
        load_recipe("synq-digits", {key: 1})


def test_errors_name_the_file(recipe_file):
    with pytest.raises(RecipeError, match=r"mine\.toml: finetune\.steps must be"):
        load_recipe(recipe_file('[finetune]\nsteps = "many"\n'))


def test_file_that_is_not_toml(recipe_file):
    with pytest.raises(RecipeError, match=r"mine\.toml is not valid TOML"):
        load_recipe(recipe_file("[finetune\nsteps = 3"))


def test_file_that_is_not_text(tmp_path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(path)


@pytest.mark.parametrize("name", ["synq-nothing", "missing/file.toml", "", "."])
def test_unknown_recipe_lists_the_known_ones(name):
    with pytest.raises(RecipeError, match=r"known: .*synq-digits"):
        load_recipe(name)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-5", 1e-5),
        ("true", True),
        ("[0.5, 1]", [0.5, 1]),
        ('"mse"', "mse"),
        ("mse", "mse"),
        (" 4 ", 4),
        ("", ""),
        ("a = b", "a = b"),
    ],
)
def test_parse_value(text, value):
    parsed = parse_value(text)
    assert parsed == value and type(parsed) is type(value)


def test_boolean_text_of_another_language_is_not_true():
    with pytest.raises(RecipeError, match="true or false"):
        load_recipe("synq-digits", {"finetune.nesterov": parse_value("False")})
