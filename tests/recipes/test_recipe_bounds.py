"""Every value of a recipe that could not work is refused before work begins."""

import dataclasses
import math
import re

import pytest

from synq_fast.errors import RecipeError
from synq_fast.finetune.losses import Cam
from synq_fast.recipes import Recipe, default_recipe, list_recipes, load_recipe


def every_bounded_key(kind=Recipe, prefix=""):
    for field in dataclasses.fields(kind):
        inner = field.default_factory
        if dataclasses.is_dataclass(inner):
            yield from every_bounded_key(inner, f"{prefix}{field.name}.")
        elif "low" in field.metadata:
            yield f"{prefix}{field.name}", field


KEYS = dict(every_bounded_key())


@pytest.mark.parametrize("key", KEYS)
def test_every_number_has_two_finite_bounds_that_hold(key):
    field = KEYS[key]
    bounds, listed = field.metadata, isinstance(field.default, tuple)
    low, high = bounds["low"], bounds["high"]
    assert 0 <= low < high < math.inf
    assert listed or low <= field.default <= high or (bounds.get("or_zero") and not field.default)
    whole = isinstance(field.default, int)
    for value in (-1, high + 1, 2 * high + 1) if whole else (-1e-300, -1.0, 1.001 * high, 1e300):
        with pytest.raises(RecipeError, match=rf"{key} must be .*{re.escape(f'{high:.10g}')}"):
            load_recipe("synq-digits", {key: [value, value] if listed else value})
    if low > 0 and not bounds.get("or_zero"):
        with pytest.raises(RecipeError, match=key):
            load_recipe("synq-digits", {key: [0, 0] if listed else 0})


@pytest.mark.parametrize("section", ["synthesis", "finetune", "filter", "quantization"])
def test_every_number_is_bounded(section):
    def numbers(table, prefix):
        for name, value in table.items():
            if isinstance(value, dict):
                yield from numbers(value, f"{prefix}{name}.")
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                yield f"{prefix}{name}"

    table = dataclasses.asdict(Recipe("x"))[section]
    assert set(numbers(table, f"{section}.")) <= KEYS.keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("filter.cutoff", 0),
        ("filter.cutoff", 1e-200),
        ("filter.order", 10**19),
        ("finetune.learning_rate", 0),
        ("finetune.learning_rate", 1e-300),
        ("synthesis.learning_rate", 0),
        ("synthesis.images", 10**15),
        ("finetune.distillation.temperature", 1e20),
        ("finetune.cam.weight", 1e-300),
        ("finetune.momentum", 1.0),
        ("finetune.milestones", [2.0]),
        ("finetune.perturbation.epsilon", 0),
        ("finetune.crop_scale", [1e-30, 1]),
    ],
)
def test_unworkable_values_are_refused(key, value):
    with pytest.raises(RecipeError, match=f"{key} must be"):
        load_recipe("synq-digits", {key: value})


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            {"synthesis.learning_rate": 1e-6},
            ["synthesis.min_learning_rate", "above synthesis.learning_rate = 1e-06"],
        ),
        (
            {"synthesis.centers": {"weight": 1, "learning_rate": 0.01}},
            ["synthesis.centers.min_learning_rate"],
        ),
        ({"synthesis.statistics.weight": 0, "synthesis.classes.weight": 0}, ["images stay noise"]),
        (
            {
                "synthesis.centers.weight": 1,
                "synthesis.centers.class_weight": 0,
                "synthesis.centers.shallow_weight": 0,
                "synthesis.centers.deep_weight": 0,
            },
            ["centres stay noise"],
        ),
        (
            {
                "finetune.distillation.alpha": 0,
                "finetune.distillation.label_weight": 0,
                "finetune.features.weight": 0,
                "finetune.cam.weight": 0,
            },
            ["finetune.cam", "learns nothing"],
        ),
        (
            {"quantization.probabilities": "log2", "quantization.placement": "integer"},
            ["no powers of two", 'quantization.probabilities = "uniform"'],
        ),
        (
            {"quantization.after_gelu": "minifloat", "quantization.placement": "integer"},
            ["no small floats", 'quantization.after_gelu = "uniform"'],
        ),
        ({"finetune.schedule": "step"}, ["finetune.milestones"]),
        (
            {"synthesis.sparse.share": 0.3, "synthesis.parametrization": "latent"},
            ['synthesis.parametrization = "latent"', 'set it to "pixels"'],
        ),
        (
            {"synthesis.sparse.share": 0.3, "synthesis.regions.most": 2},
            ["synthesis.regions looks at regions of whole images", "synthesis.regions.most = 0"],
        ),
        (
            {"synthesis.sparse.share": 0.3, "synthesis.attention_entropy.weight": 1.0},
            ["synthesis.attention_entropy read every patch", "synthesis.sparse.share = 0"],
        ),
        (
            {"synthesis.regions.most": 2, "synthesis.classes.weight": 0},
            ["no loss looks at them", "synthesis.soft_classes"],
        ),
        (
            {"synthesis.soft_classes.low": 6.0, "synthesis.soft_classes.high": 5.0},
            ["synthesis.soft_classes.low = 6.0 is above synthesis.soft_classes.high = 5.0"],
        ),
        (
            {"synthesis.discrepancy.weight": 1.0, "synthesis.alignment.weight": 1.0},
            ["synthesis.alignment and synthesis.discrepancy read", "set synthesis.refresh.every"],
        ),
        (
            {
                "synthesis.statistics.weight": 0,
                "synthesis.classes.weight": 0,
                "synthesis.discrepancy.weight": 1.0,
                "synthesis.refresh.every": 2,
            },
            ["that the float network alone decides", "images stay noise"],
        ),
        (
            {
                "synthesis.refresh.every": 2,
                "synthesis.refresh.restart": False,
                "synthesis.parametrization": "latent",
            },
            ["synthesis.refresh.restart = false", 'set it to "pixels"'],
        ),
        (
            {
                "synthesis.refresh.every": 2,
                "synthesis.refresh.ranges": True,
                "quantization.learn_ranges": True,
            },
            ["synthesis.refresh.ranges", "set one of the two to false"],
        ),
        (
            {"synthesis.sparse.share": 0.3, "synthesis.attention_prior.weight": 1.0},
            ["synthesis.attention_prior read every patch", "synthesis.sparse.share = 0"],
        ),
        (
            {"finetune.mixup": 1.0},
            ["finetune.mixup mixes", "that finetune.distillation could", "label_weight = 0"],
        ),
        (
            {
                "finetune.mixup": 1.0,
                "finetune.distillation.label_weight": 0,
                "finetune.cam.target": "label",
            },
            ["that finetune.cam could", 'finetune.cam.target = "argmax"'],
        ),
        (
            {
                "finetune.mixup": 1.0,
                "finetune.distillation.label_weight": 0,
                "finetune.batch_size": 1,
            },
            ["finetune.batch_size = 1", "no second"],
        ),
    ],
    ids=lambda value: next(iter(value)),
)
def test_values_that_leave_nothing_to_do_together(overrides, parts):
    with pytest.raises(RecipeError) as caught:
        load_recipe("synq-digits", overrides)
    assert all(part in str(caught.value) for part in parts)


def test_a_part_that_is_off_may_hold_anything():
    load_recipe("synq-digits", {"synthesis.centers": {"weight": 0, "learning_rate": 0.01}})
    weights = ("distillation.alpha", "distillation.label_weight", "features.weight", "cam.weight")
    off = {f"finetune.{name}": 0 for name in weights}
    assert load_recipe("synq-digits", {**off, "finetune.steps": 0}).finetune.loss(Cam).weight == 0


@pytest.mark.parametrize(
    "overrides",
    [
        {"finetune.mixup": 1.0, "finetune.distillation.label_weight": 0},
        {"finetune.mixup": 1.0, "finetune.steps": 0},
        {
            "finetune.mixup": 0.2,
            "finetune.distillation.label_weight": 0,
            "finetune.cam.weight": 0,
        },
        {
            "finetune.mixup": 1.0,
            "finetune.distillation": {"alpha": 0, "label_weight": 0},
            "finetune.pseudo_labels": {"reliable_weight": 1},
        },
    ],
    ids=str,
)
def test_images_are_mixed_where_no_loss_reads_their_labels(overrides):
    assert load_recipe("synq-digits", overrides).finetune.mixup


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((1, 8, 8), "synq-fast-digits"),
        ((1, 16, 16), "synq-fast-digits"),
        ((1, 28, 28), "synq-fast-cifar"),
        ((3, 32, 32), "synq-fast-cifar"),
        ((3, 64, 64), "synq-fast-cifar"),
        ((3, 16, 64), "synq-fast-cifar"),
        ((3, 96, 96), "synq-fast-imagenet"),
        ((3, 224, 224), "synq-fast-imagenet"),
        ((3, 32, 400), "synq-fast-imagenet"),
    ],
)
def test_default_recipe_follows_the_image_size(shape, name):
    found, reason = default_recipe(shape)
    assert found == name and name in list_recipes()
    assert reason == f"for images of {shape[1]} x {shape[2]} pixels"


def test_eight_bits_of_large_networks_need_no_training():
    name, reason = default_recipe((3, 224, 224), lowest=8)
    assert (name, reason) == ("synq-fast-imagenet-8bit", "for images of 224 x 224 pixels at 8 bits")
    one, other = load_recipe(name), load_recipe("synq-fast-imagenet")
    assert one.stages == ("synthesis", "calibration")
    # The widths of one command share their images.
    assert one.synthesis == other.synthesis
    assert default_recipe((3, 224, 224), lowest=7)[0] == other.name
    assert default_recipe((3, 32, 32), lowest=8)[0] == "synq-fast-cifar"


def test_the_softest_look_is_no_sharper_than_the_sharpest():
    with pytest.raises(RecipeError, match=r"lower variety.softest = 30, or raise .* = 20"):
        load_recipe("synq-digits", {"variety": {"softest": 30.0, "sharpest": 20.0}})


def test_balanced_weights_need_ranges_that_stay():
    with pytest.raises(RecipeError, match=r'balanced" moves weights.*weight_range = "learned"'):
        load_recipe("synq-digits", {"quantization.weight_rounding": "balanced"})
