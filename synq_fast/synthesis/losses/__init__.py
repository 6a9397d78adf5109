"""What makes an image look like the teacher's training data: a file for each kind of loss."""

from collections.abc import Iterable, Mapping

from synq_fast.synthesis.losses.attention import AttentionPrior, Heads
from synq_fast.synthesis.losses.classes import Classes, focal_class_loss
from synq_fast.synthesis.losses.disagreement import Disagreement
from synq_fast.synthesis.losses.discrepancy import Discrepancy
from synq_fast.synthesis.losses.informative import Alignment, AttentionEntropy
from synq_fast.synthesis.losses.loss import (
    Attended,
    Enlarged,
    ImageLoss,
    Moment,
    Seen,
    Start,
    Targets,
)
from synq_fast.synthesis.losses.margin import Margin
from synq_fast.synthesis.losses.patches import Patches, Roughness
from synq_fast.synthesis.losses.prior import Prior
from synq_fast.synthesis.losses.soft_classes import SoftClasses
from synq_fast.synthesis.losses.soft_labels import SoftLabels
from synq_fast.synthesis.losses.statistics import (
    Deviations,
    Statistics,
    layer_switch,
    layered_weights,
    statistics_distance,
)
from synq_fast.synthesis.losses.variation import Variation

IMAGE_LOSSES: dict[str, type[ImageLoss]] = {
    "statistics": Statistics,
    "deviations": Deviations,
    "classes": Classes,
    "soft_labels": SoftLabels,
    "soft_classes": SoftClasses,
    "margin": Margin,
    "prior": Prior,
    "patches": Patches,
    "roughness": Roughness,
    "attention_prior": AttentionPrior,
    "heads": Heads,
    "attention_entropy": AttentionEntropy,
    "alignment": Alignment,
    "discrepancy": Discrepancy,
    "variation": Variation,
}
"""Of images that are optimized, by the name of their section in a recipe, in the order in which
they are summed."""
GENERATOR_LOSSES: dict[str, type[ImageLoss]] = {
    "statistics": Statistics,
    "classes": Classes,
    "disagreement": Disagreement,
    "variation": Variation,
}
"""The same of a generator, whose labels are new at every step."""


def named_losses(
    registry: Mapping[str, type[ImageLoss]], losses: Iterable[ImageLoss]
) -> dict[str, ImageLoss]:
    """Those that count, by the name of their section, in the registry's order."""
    by_kind = {type(loss): loss for loss in losses if loss.weight}
    return {name: by_kind[kind] for name, kind in registry.items() if kind in by_kind}


__all__ = [
    "GENERATOR_LOSSES",
    "IMAGE_LOSSES",
    "Alignment",
    "Attended",
    "AttentionEntropy",
    "AttentionPrior",
    "Classes",
    "Deviations",
    "Disagreement",
    "Discrepancy",
    "Enlarged",
    "Heads",
    "ImageLoss",
    "Margin",
    "Moment",
    "Patches",
    "Prior",
    "Roughness",
    "Seen",
    "SoftClasses",
    "SoftLabels",
    "Start",
    "Statistics",
    "Targets",
    "Variation",
    "focal_class_loss",
    "layer_switch",
    "layered_weights",
    "named_losses",
    "statistics_distance",
]
