"""What fine-tuning minimizes: a file for each kind of loss."""

from synq_fast.finetune.losses.cam import Cam
from synq_fast.finetune.losses.disagreement import Disagreement
from synq_fast.finetune.losses.distillation import Distillation
from synq_fast.finetune.losses.feature_distance import FeatureDistance
from synq_fast.finetune.losses.features import Features
from synq_fast.finetune.losses.head_similarity import HeadSimilarity
from synq_fast.finetune.losses.logit_distance import LogitDistance
from synq_fast.finetune.losses.loss import Batch, Loss, View
from synq_fast.finetune.losses.pseudo_labels import PseudoLabels

LOSSES: dict[str, type[Loss]] = {
    "distillation": Distillation,
    "disagreement": Disagreement,
    "logit_distance": LogitDistance,
    "pseudo_labels": PseudoLabels,
    "features": Features,
    "feature_distance": FeatureDistance,
    "head_similarity": HeadSimilarity,
    "cam": Cam,
}
"""By the name of their section in a recipe, in the order in which they are summed."""

__all__ = [
    "LOSSES",
    "Batch",
    "Cam",
    "Disagreement",
    "Distillation",
    "FeatureDistance",
    "Features",
    "HeadSimilarity",
    "LogitDistance",
    "Loss",
    "PseudoLabels",
    "View",
]
