"""The recipe that a run takes, the same from Python and from the command line."""

import pytest

import synq_fast
from synq_fast.cli import main
from synq_fast.engine.asked_for import asked_for
from synq_fast.errors import RecipeError
from tests.tiny import SHAPE, TINY_OVERRIDES, tiny_net


class Taken(Exception):
    """Carries the recipe out of a run that is about to begin."""


@pytest.fixture
def taken(monkeypatch):
    def stop(teacher, recipe, *rest, **options):
        raise Taken(recipe.name)

    monkeypatch.setattr("synq_fast.engine.calls.Run", stop)

    def name_of(call, *args, **options):
        with pytest.raises(Taken) as caught:
            call(*args, **options)
        return str(caught.value)

    return name_of


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        ("tiny:tiny_net", (2, 224, 224), "synq-fast-imagenet"),
        ("tiny:tiny_net", (2, 64, 64), "synq-fast-cifar"),
        ("cifar100-resnet20kd", None, "synq-fast-cifar"),
        ("digits-resnet20", None, "synq-fast-digits"),
    ],
)
def test_recipe_follows_the_model_everywhere(taken, tmp_path, model, shape, expected):
    weights = "random" if model.startswith("cifar") else None
    teacher = synq_fast.load_teacher(model, weights=weights, input_shape=shape)
    assert taken(synq_fast.quantize, teacher) == expected
    assert taken(synq_fast.synthesize, teacher, tmp_path) == expected
    named = ["--model", model]
    named += [] if weights is None else ["--weights", weights]
    named += [] if shape is None else ["--input-shape", ",".join(map(str, shape))]
    assert taken(main, ["quantize", *named]) == expected
    assert taken(main, ["synthesize", *named, "--output", str(tmp_path)]) == expected
    assert taken(main, ["quantize", *named, "--recipe", "synq-digits"]) == "synq-digits"


def test_resnet18_is_an_imagenet_network(taken):
    teacher = synq_fast.load_teacher("resnet18", weights="random")
    assert taken(synq_fast.quantize, teacher) == "synq-fast-imagenet"


def test_modules_of_ones_own(taken):
    assert taken(synq_fast.quantize, tiny_net(), input_shape=(2, 8, 8)) == "synq-fast-digits"
    assert taken(synq_fast.quantize, tiny_net(), input_shape=(2, 32, 32)) == "synq-fast-cifar"
    assert taken(synq_fast.quantize, tiny_net(), input_shape=(2, 96, 96)) == "synq-fast-imagenet"


def test_a_named_recipe_is_taken_and_checked_first():
    _, recipe, line = asked_for(tiny_net(), "synq-imagenet", SHAPE, {"finetune.steps": 3})
    assert (recipe.name, recipe.finetune.steps, line) == (
        "synq-imagenet",
        3,
        "recipe synq-imagenet",
    )
    with pytest.raises(RecipeError, match="synq-nothing"):
        asked_for("no-such-model", "synq-nothing", None, None)


def test_the_run_says_which_and_why(capsys):
    few = {"blocks.images": 4, "blocks.steps": 1, "blocks.batch_size": 4}
    overrides = {**TINY_OVERRIDES, **few, "synthesis.augment_probability": 0.0}
    result = synq_fast.quantize(tiny_net(), input_shape=SHAPE, overrides=overrides)
    assert result.recipe.name == "synq-fast-digits"
    said = capsys.readouterr().err
    chosen = "recipe synq-fast-digits, for images of 8 x 8 pixels (choose another with recipe="
    assert chosen in said
