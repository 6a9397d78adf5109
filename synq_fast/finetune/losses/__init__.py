"""What fine-tuning minimizes: a file for each kind of loss."""

from synq_fast.finetune.losses.cam import Cam
from synq_fast.finetune.losses.distillation import Distillation
from synq_fast.finetune.losses.features import Features
from synq_fast.finetune.losses.loss import Batch, Loss, View

LOSSES: dict[str, type[Loss]] = {
    "distillation": Distillation,
    "features": Features,
    "cam": Cam,
}
"""By the name of their section in a recipe, in the order in which they are summed."""

__all__ = ["LOSSES", "Batch", "Cam", "Distillation", "Features", "Loss", "View"]
