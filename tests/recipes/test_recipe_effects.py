import dataclasses
import warnings

import pytest

import synq_fast
from synq_fast.errors import ArgumentError, ModelError, RunFolderError, SynqFastWarning
from synq_fast.models import load_teacher
from synq_fast.recipes import list_recipes, load_recipe
from synq_fast.recipes.effects import _IDLE, without_effect
from tests.tiny import TINY_OVERRIDES, run, tiny_teacher

BLOCKS = {
    "stages": ["synthesis", "calibration", "blocks", "finetune"],
    "quantization.weight_range": "learned",
    "quantization.learn_ranges": True,
}
IMAGE_LOSS_VALUES = {
    "synthesis": [
        ("classes", "gamma"),
        ("soft_labels", "lowest"),
        ("margin", "low"),
        ("roughness", "low"),
        ("soft_classes", "low"),
    ],
    "generator": [("classes", "gamma"), ("disagreement", "low")],
}
IDLE = [
    (
        {"stages": ["generator", "calibration", "finetune"], "variety.contrast": 0.3},
        {"stages": ["synthesis", "calibration", "finetune"]},
    ),
    ({"variety.softest": 0.0, "variety.sharpest": 50.0}, {"variety.softest": 4.0}),
    ({"filter.order": 3}, {"filter.kind": "butterworth"}),
    ({"filter.kind": "none", "filter.cutoff": 5.0}, {"filter.kind": "gaussian"}),
    (
        {"quantization.learn_ranges": True, "quantization.ste": "identity"},
        {"quantization.ste": "clip"},
    ),
    ({"finetune.range_learning_rate": 1e-3}, {"quantization.learn_ranges": True}),
    ({"finetune.milestones": [0.5]}, {"finetune.schedule": "step"}),
    ({"finetune.optimizer": "adam", "finetune.momentum": 0.5}, {"finetune.optimizer": "sgd"}),
    (
        {**BLOCKS, "blocks.rounding": "soft", "blocks.weight_learning_rate": 1e-4},
        {"blocks.rounding": "straight"},
    ),
    (
        {**BLOCKS, "blocks.rounding": "straight", "blocks.rounding_weight": 0.5},
        {"blocks.rounding": "soft"},
    ),
    ({"finetune.momentum": 0, "finetune.nesterov": True}, {"finetune.momentum": 0.9}),
    (
        {"finetune.perturbation.weight": 0, "finetune.perturbation.epsilon": 0.1},
        {"finetune.perturbation.weight": 1.0},
    ),
    (
        {"finetune.perturbation.weight": 0, "finetune.features.in_perturbed_pass": False},
        {"finetune.perturbation.weight": 1.0},
    ),
    ({"finetune.cam.weight": 0, "finetune.cam.target": "label"}, {"finetune.cam.weight": 1.0}),
    (
        {"finetune.distillation.alpha": 0, "finetune.distillation.temperature": 2.0},
        {"finetune.distillation.alpha": 1.0},
    ),
    (
        {
            "finetune.distillation.soft_labels_only_if_difficult": False,
            "finetune.distillation.difficulty_threshold": 0.2,
        },
        {"finetune.distillation.soft_labels_only_if_difficult": True},
    ),
    (
        {
            "finetune.distillation.label_weight": 0,
            "finetune.distillation.difficulty_threshold": 0.2,
        },
        {"finetune.distillation.label_weight": 0.5},
    ),
    (
        {"finetune.distillation.alpha": 0, "finetune.distillation.reduction": "element"},
        {"finetune.distillation.alpha": 1.0},
    ),
    (
        {"finetune.disagreement.weight": 0, "finetune.disagreement.temperature": 5.0},
        {"finetune.disagreement.weight": 1.0},
    ),
    (
        {
            "finetune.pseudo_labels.reliable_weight": 0,
            "finetune.pseudo_labels.unreliable_weight": 0,
            "finetune.pseudo_labels.entropy_thresholds": [0.4, 0.1],
        },
        {"finetune.pseudo_labels.unreliable_weight": 0.5},
    ),
    ({"synthesis.augment_scale": [0.2, 1]}, {"synthesis.augment_probability": 0.5}),
    (
        {"synthesis.classes.weight": 0, "synthesis.classes.gamma": 1.0},
        {"synthesis.classes.weight": 1.0},
    ),
    ({"synthesis.centers.steps": 3}, {"synthesis.centers.weight": 0.02}),
    ({"synthesis.sparse.milestones": [0.2]}, {"synthesis.sparse.share": 0.3}),
    (
        {"synthesis.sparse.milestones": [], "synthesis.sparse.share": 0.3},
        {"synthesis.sparse.milestones": [0.2]},
    ),
    ({"synthesis.latent.size": 16}, {"synthesis.parametrization": "latent"}),
    ({"synthesis.regions.share": 0.5}, {"synthesis.regions.most": 2}),
    ({"synthesis.refresh.steps": 5}, {"synthesis.refresh.every": 10}),
    (
        {"synthesis.attention_entropy.weight": 0, "synthesis.attention_entropy.rows": 8},
        {"synthesis.attention_entropy.weight": 1.0},
    ),
    (
        {
            "synthesis.refresh.every": 10,
            "synthesis.alignment.weight": 0,
            "synthesis.alignment.first": 0.4,
        },
        {"synthesis.alignment.weight": 1.0},
    ),
    (
        {"finetune.steps": 10, "synthesis.refresh.every": 10},
        {"finetune.steps": 11},
    ),
    (
        {"finetune.head_similarity.weight": 1.0, "finetune.head_similarity.emphasized": 0.2},
        {"finetune.head_similarity.emphasis": 2.0},
    ),
    (
        {"finetune.head_similarity.weight": 0, "finetune.head_similarity.emphasis": 2.0},
        {"finetune.head_similarity.weight": 1.0},
    ),
    (
        {"synthesis.parametrization": "latent", "synthesis.clip": True},
        {"synthesis.parametrization": "pixels"},
    ),
    *(
        (
            {"stages": [section, "calibration", "finetune"], f"{part}.weight": 0, f"{part}.{f}": 0},
            {f"{part}.weight": 1.0},
        )
        for section, names in IMAGE_LOSS_VALUES.items()
        for name, f in names
        for part in [f"{section}.{name}"]
    ),
]


@pytest.mark.parametrize(("overrides", "mended"), IDLE, ids=lambda v: ", ".join(v))
def test_an_override_that_can_do_nothing_is_said(overrides, mended):
    key = list(overrides)[-1]
    with pytest.warns(SynqFastWarning, match=f"^{key} has no effect: ") as caught:
        load_recipe("synq-cifar", overrides)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_recipe("synq-cifar", {**overrides, **mended})


def test_every_rule_is_tested():
    tried = [load_quietly(overrides) for overrides, _ in IDLE]
    for idle in _IDLE:
        assert any(set(idle.keys) & set(keys) and idle.when(recipe) for recipe, keys in tried)


def load_quietly(overrides):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_recipe("synq-cifar", overrides), list(overrides)


def test_a_whole_section_as_override():
    recipe = load_recipe("synq-cifar")
    found = list(without_effect(recipe, {"synthesis": {"centers": {"steps": 3, "weight": 0.0}}}))
    assert found == ["synthesis.centers.steps has no effect: synthesis.centers.weight is 0"]


@pytest.mark.parametrize("name", list_recipes())
def test_values_of_a_recipe_alone_are_not_overrides(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_recipe(name)


def test_arguments_that_can_do_nothing():
    with pytest.warns(SynqFastWarning, match="evaluate_every has no effect"):
        run(evaluate_every=2, overrides={"finetune.steps": 0})
    with pytest.raises(RunFolderError, match="resume continues the run in a folder"):
        run(resume=True)
    with pytest.raises(ArgumentError, match="evaluate_every"):
        run(evaluate_every=-1)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "random"},
        {"input_shape": (2, 9, 9)},
        {"mean": (1.0, 1.0)},
        {"std": (2.0, 2.0)},
        {"num_classes": 4},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_made_teacher_is_not_changed_in_silence(change):
    teacher = tiny_teacher()
    with pytest.raises(ModelError, match=f"^{next(iter(change))} cannot be changed"):
        load_teacher(teacher, **change)
    same = {key: getattr(teacher, key) for key in change if key != "weights"}
    assert load_teacher(teacher, **same) is teacher
    if "input_shape" in change:
        with pytest.raises(ModelError, match="cannot be changed"):
            synq_fast.quantize(teacher, input_shape=(2, 9, 9), overrides=TINY_OVERRIDES)
        larger = dataclasses.replace(teacher, input_shape=(2, 9, 9))
        assert load_teacher(larger).input_shape == (2, 9, 9)
