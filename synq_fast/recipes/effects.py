"""Recipe values that cannot do anything beside the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from synq_fast.bank.variety import Variety
from synq_fast.finetune.losses import (
    Cam,
    Disagreement,
    Distillation,
    Features,
    HeadSimilarity,
    PseudoLabels,
)
from synq_fast.finetune.settings import AnyLoss
from synq_fast.recipes.schema import OPTIONAL_STAGES, Recipe
from synq_fast.synthesis.losses import GENERATOR_LOSSES, IMAGE_LOSSES, ImageLoss
from synq_fast.synthesis.settings import Centers, Latent, Refresh, Sparse


@dataclass(frozen=True)
class _Idle:
    keys: tuple[str, ...]
    """Dotted keys."""
    when: Callable[[Recipe], bool]
    because: str


def _of(recipe: Recipe, kind: type[AnyLoss]) -> AnyLoss:
    """The loss of a kind; where a recipe does without, one with its defaults."""
    return recipe.finetune.loss(kind) or kind()


def _weightless(
    section: str,
    registry: Mapping[str, type[ImageLoss]],
    losses_of: Callable[[Recipe], Iterable[ImageLoss]],
) -> Iterator[_Idle]:
    """The values of each image loss, which do nothing while its weight is 0."""

    def without(kind: type[ImageLoss]) -> Callable[[Recipe], bool]:
        return lambda r: not any(type(loss) is kind and loss.weight for loss in losses_of(r))

    for name, kind in registry.items():
        keys = tuple(f"{section}.{name}.{f.name}" for f in fields(kind) if f.name != "weight")
        if keys:
            yield _Idle(keys, without(kind), f"{section}.{name}.weight is 0")


_CENTERS = tuple(f"synthesis.centers.{f.name}" for f in fields(Centers) if f.name != "weight")
_IDLE = (
    _Idle(
        ("filter.order",),
        lambda r: r.filter.kind != "butterworth",
        'only filter.kind = "butterworth" has an order',
    ),
    _Idle(
        ("filter.cutoff",),
        lambda r: r.filter.kind == "none",
        'filter.kind = "none" filters nothing',
    ),
    _Idle(
        tuple(f"variety.{f.name}" for f in fields(Variety)),
        lambda r: "generator" in r.stages,
        "a generator makes other images for each batch",
    ),
    _Idle(
        ("variety.sharpest",),
        lambda r: r.variety.softest == 0,
        "variety.softest = 0 blurs nothing",
    ),
    _Idle(
        ("quantization.ste",),
        lambda r: r.quantization.learn_ranges and r.quantization.ste == "identity",
        "outside a learned range the gradient is always zeroed (quantization.learn_ranges)",
    ),
    _Idle(
        ("finetune.range_learning_rate",),
        lambda r: not r.quantization.learn_ranges and r.quantization.weight_range != "learned",
        'ranges are trained only with quantization.learn_ranges = true or weight_range = "learned"',
    ),
    _Idle(
        ("finetune.milestones",),
        lambda r: r.finetune.schedule != "step",
        'only finetune.schedule = "step" has milestones',
    ),
    _Idle(
        ("finetune.momentum", "finetune.nesterov"),
        lambda r: r.finetune.optimizer == "adam",
        "finetune.optimizer is Adam, which has moments of its own",
    ),
    _Idle(
        ("blocks.weight_learning_rate",),
        lambda r: r.blocks.rounding == "soft",
        'with blocks.rounding = "soft" the choices are trained, not the weights',
    ),
    _Idle(
        tuple(f"blocks.rounding_{n}" for n in ("learning_rate", "weight", "start", "exponents")),
        lambda r: r.blocks.rounding == "straight",
        'there are no soft choices with blocks.rounding = "straight"',
    ),
    _Idle(
        ("finetune.nesterov",),
        lambda r: r.finetune.momentum == 0,
        "finetune.momentum is 0",
    ),
    _Idle(
        ("finetune.perturbation.epsilon", "finetune.perturbation.through_teacher"),
        lambda r: r.finetune.perturbation.weight == 0,
        "finetune.perturbation.weight is 0",
    ),
    _Idle(
        ("finetune.features.in_perturbed_pass",),
        lambda r: _of(r, Features).weight == 0 or r.finetune.perturbation.weight == 0,
        "finetune.features.weight or finetune.perturbation.weight is 0",
    ),
    _Idle(
        ("finetune.cam.target",),
        lambda r: _of(r, Cam).weight == 0,
        "finetune.cam.weight is 0",
    ),
    _Idle(
        ("finetune.distillation.temperature", "finetune.distillation.reduction"),
        lambda r: _of(r, Distillation).alpha == 0,
        "finetune.distillation.alpha is 0",
    ),
    _Idle(
        (
            "finetune.distillation.difficulty_threshold",
            "finetune.distillation.soft_labels_only_if_difficult",
        ),
        lambda r: _of(r, Distillation).label_weight == 0,
        "finetune.distillation.label_weight is 0",
    ),
    _Idle(
        ("finetune.distillation.difficulty_threshold",),
        lambda r: not _of(r, Distillation).soft_labels_only_if_difficult,
        "finetune.distillation.soft_labels_only_if_difficult is false",
    ),
    _Idle(
        ("finetune.disagreement.temperature",),
        lambda r: _of(r, Disagreement).weight == 0,
        "finetune.disagreement.weight is 0",
    ),
    _Idle(
        ("finetune.pseudo_labels.entropy_thresholds",),
        lambda r: not _of(r, PseudoLabels).active,
        "the reliable_weight and unreliable_weight of finetune.pseudo_labels are 0",
    ),
    _Idle(
        ("synthesis.augment_scale",),
        lambda r: r.synthesis.augment_probability == 0,
        "synthesis.augment_probability is 0",
    ),
    *_weightless("synthesis", IMAGE_LOSSES, lambda r: r.synthesis.losses),
    *_weightless("generator", GENERATOR_LOSSES, lambda r: r.generator.losses),
    _Idle(
        tuple(f"synthesis.latent.{f.name}" for f in fields(Latent)),
        lambda r: r.synthesis.parametrization != "latent",
        'synthesis.parametrization is not "latent"',
    ),
    _Idle(
        ("synthesis.clip",),
        lambda r: r.synthesis.parametrization != "pixels",
        'only synthesis.parametrization = "pixels" can be kept within bounds',
    ),
    _Idle(
        tuple(f"synthesis.sparse.{f.name}" for f in fields(Sparse) if f.name != "share"),
        lambda r: r.synthesis.sparse.share == 0,
        "synthesis.sparse.share is 0",
    ),
    _Idle(
        ("synthesis.sparse.share",),
        lambda r: not r.synthesis.sparse.milestones,
        "synthesis.sparse.milestones names no step at which patches are dropped",
    ),
    _Idle(
        ("synthesis.regions.share",),
        lambda r: r.synthesis.regions.most == 0,
        "synthesis.regions.most is 0",
    ),
    _Idle(
        tuple(f"synthesis.refresh.{f.name}" for f in fields(Refresh) if f.name != "every"),
        lambda r: r.synthesis.refresh.every == 0,
        "synthesis.refresh.every is 0",
    ),
    _Idle(
        ("synthesis.refresh.every",),
        lambda r: (
            r.synthesis.refresh.every > 0
            and ("finetune" not in r.stages or r.finetune.steps <= r.synthesis.refresh.every)
        ),
        "no step of fine-tuning comes after so many (finetune.steps)",
    ),
    _Idle(
        ("finetune.head_similarity.emphasized",),
        lambda r: _of(r, HeadSimilarity).emphasis == 1,
        "finetune.head_similarity.emphasis is 1",
    ),
    _Idle(
        ("finetune.head_similarity.emphasis",),
        lambda r: _of(r, HeadSimilarity).weight == 0,
        "finetune.head_similarity.weight is 0",
    ),
    _Idle(
        _CENTERS,
        lambda r: r.synthesis.centers.weight == 0,
        "synthesis.centers.weight is 0",
    ),
)


def without_effect(recipe: Recipe, overrides: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each override that changes nothing in a recipe as it is now.

    Args:
        recipe: with the overrides.
        overrides: values by dotted key; a value may be a whole section.
    """
    for key in _flat(overrides):
        section = key.split(".")[0]
        if section in OPTIONAL_STAGES and section not in recipe.stages:
            yield f"{key} has no effect: the recipe's stages are {', '.join(recipe.stages)}"
            continue
        for idle in _IDLE:
            if key in idle.keys and idle.when(recipe):
                yield f"{key} has no effect: {idle.because}"
                break


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
