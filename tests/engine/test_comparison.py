"""Recipes beside each other."""

import json
import warnings

import pytest

import synq_fast
from synq_fast.engine import comparison
from synq_fast.engine.comparison import Comparison, Trial, compare, policy_of
from synq_fast.errors import ArgumentError, DataError, RunFolderError
from synq_fast.quant.settings import Quantization
from synq_fast.recipes import load_recipe
from tests.tiny import TINY_OVERRIDES, labelled, tiny_teacher

QUICK = {**TINY_OVERRIDES, "finetune.steps": 2, "blocks.steps": 2, "blocks.images": 6}


@pytest.fixture(autouse=True)
def no_idle_overrides():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has no effect")
        yield


def small(**options):
    given = {
        "recipes": ["calibrate-digits", "synq-fast-digits"],
        "bits": ["w4a4", "w2a3"],
        "seeds": [0, 1],
        "evaluation": labelled(),
        "overrides": QUICK,
        "progress": False,
    }
    return compare(tiny_teacher(), **{**given, **options})


def test_every_recipe_at_every_width_from_every_seed(tmp_path):
    found = small(output=tmp_path)
    rows = found.rows()
    assert [(row.bits, row.recipe, len(row.top1)) for row in rows] == [
        ("w4a4", "calibrate-digits", 2),
        ("w4a4", "synq-fast-digits", 2),
        ("w2a3", "calibrate-digits", 2),
        ("w2a3", "synq-fast-digits", 2),
    ]
    assert all(row.lost == pytest.approx(row.float32 - sum(row.top1) / 2) for row in rows)
    alone = synq_fast.quantize(
        tiny_teacher(),
        "synq-fast-digits",
        "w2a3",
        seed=1,
        overrides=QUICK,
        evaluation=labelled(),
        progress=False,
    )
    assert rows[-1].top1[1] == alone.metrics["quantized"]["top1"]
    (network,) = tmp_path.iterdir()
    text = (network / "comparison.md").read_text()
    assert text == str(found) and text.count("\n| w") == 4
    # One bank for each seed: both recipes make the same images here.
    assert len(list((network / "banks").iterdir())) == 2


def test_a_killed_comparison_goes_on(tmp_path, monkeypatch):
    expected, calls = small(), []
    quantize = comparison.quantize

    def killed(*arguments, **options):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(options["seed"])
        return quantize(*arguments, **options)

    monkeypatch.setattr(comparison, "quantize", killed)
    with pytest.raises(KeyboardInterrupt):
        small(output=tmp_path)
    calls.clear()
    monkeypatch.setattr(
        comparison, "quantize", lambda *a, **o: calls.append(0) or quantize(*a, **o)
    )
    found = small(output=tmp_path)
    assert len(calls) == 8 - 3
    assert [t.top1 for t in found.trials] == [t.top1 for t in expected.trials]
    calls.clear()
    assert small(output=tmp_path) == found and not calls


def test_other_weights_of_the_same_name_are_another_network(tmp_path):
    options = {"bits": ["w4a4"], "seeds": [0], "recipes": ["calibrate-digits"]}
    first, second = tiny_teacher(0), tiny_teacher(1)
    assert first.name == second.name
    given = {"evaluation": labelled(), "overrides": QUICK, "progress": False, **options}
    found = [compare(t, **given, output=tmp_path / str(i)) for i, t in enumerate((first, second))]
    with pytest.raises(RunFolderError, match="teacher"):
        compare(second, **given, output=tmp_path / "0")
    assert found[0].trials[0].fingerprint != found[1].trials[0].fingerprint


def test_in_several_processes_it_finds_the_same(tmp_path, capsys):
    options = {"bits": ["w4a4"], "seeds": [0, 1]}
    alone = small(**options)
    together = small(**options, jobs=2, output=tmp_path, progress=True)
    assert [t.top1 for t in together.trials] == [t.top1 for t in alone.trials]
    said = capsys.readouterr().err
    assert "images 2 of 2 are there" in said
    assert (
        f"run 4 of 4, synq-fast-digits w4a4 seed 1: top-1 {together.trials[-1].top1:.2f} %" in said
    )


def test_rows_of_other_policies_stay_apart():
    def trial(policy: str) -> Trial:
        return Trial("a", "w2a2", 0, policy, 90.0, 50.0, 60.0, 100, 1.0, policy)

    rows = Comparison("net", (trial("ends 8"), trial("ends as the rest"))).rows()
    assert [row.policy for row in rows] == ["ends 8", "ends as the rest"]
    assert [row.spread for row in rows] == [None, None]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"placement": "after_relu"}, "ends as the rest, image float"),
        ({"placement": "vit"}, "ends as the rest, image 8"),
        ({"end_bits": 8, "placement": "all_inputs"}, "ends 8, image 8"),
        (
            {"layer_bits": ("fc=w8a8",), "placement": "after_relu"},
            "ends as the rest, 1 layers named, image float",
        ),
    ],
)
def test_policy_in_words(values, text):
    assert policy_of(Quantization(**values)) == text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recipes": []}, ArgumentError, "recipes must be a list"),
        ({"bits": "w4a4"}, ArgumentError, "bits must be a list"),
        ({"evaluation": None}, DataError, "labelled images"),
        ({"jobs": 0}, ArgumentError, "jobs"),
    ],
)
def test_what_cannot_be_compared(options, error, message):
    with pytest.raises(error, match=message):
        small(**options)


def test_damaged_results_say_what_to_do(tmp_path):
    small(output=tmp_path, bits=["w4a4"], seeds=[0], recipes=["calibrate-digits"])
    (file,) = tmp_path.glob("*/comparison.json")
    assert json.loads(file.read_text())["trials"][0]["recipe"] == "calibrate-digits"
    file.write_text("{")
    with pytest.raises(DataError, match="delete it"):
        small(output=tmp_path)


def test_recipes_may_be_given_as_such():
    recipe = load_recipe("calibrate-digits", QUICK)
    assert small(recipes=[recipe], bits=["w4a4"], seeds=[0]).trials[0].recipe == recipe.name
