"""What recipes say of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from synq_fast.fields import (
    area,
    batch,
    choice,
    count,
    factor,
    flag,
    items,
    number,
    parts,
    rate,
    section,
)
from synq_fast.finetune.losses import LOSSES, Cam, Distillation, Features, Loss

AnyLoss = TypeVar("AnyLoss", bound=Loss)


@dataclass(frozen=True)
class Perturbation:
    """A second pass on images moved by the sign of the loss gradient (HAST)."""

    weight: float = factor(1.0, "factor on the second pass's losses; 0 leaves the pass out")
    epsilon: float = number(0.01, "size of the move", 1e-6, 100, "normalised pixel values")
    through_teacher: bool = flag(
        False, "let the sign follow the teacher's own dependence on the image, as published"
    )


@dataclass(frozen=True)
class Finetune:
    """Training of the quantized model."""

    steps: int = count(2000, "0 leaves the model as calibration found it", 0)
    batch_size: int = batch(64, "images in each step, of all processes together")
    learning_rate: float = rate(1e-5, "of the weights")
    range_learning_rate: float = rate(1e-5, "of the ranges, where they are learned")
    optimizer: str = choice(
        "sgd", "of weights and ranges; the rates of Adam's ranges are relative", "sgd", "adam"
    )
    momentum: float = number(0.9, "of SGD", 0, 0.9999)
    nesterov: bool = flag(True, "Nesterov's form of the momentum")
    weight_decay: float = number(1e-4, "of the weights", 0, 1e3)
    max_gradient_norm: float = factor(
        0.0, "gradients with a larger norm are scaled down to it; 0 never does"
    )
    schedule: str = choice(
        "cosine", "how the rates fall from first to last step", "constant", "cosine", "step"
    )
    milestones: tuple[float, ...] = items(
        (), 'shares of the steps after which schedule = "step" divides by 10', low=0, high=1
    )
    crop_scale: tuple[float, float] = area(
        0.5, 1.0, "part of each image that a random crop keeps; [1, 1] only mirrors"
    )
    mixup: float = number(
        0.0,
        "alpha of the Beta distribution of the shares in which each image is mixed with another "
        "of its batch (mixup, TexQ); 0 mixes nothing",
        0.05,
        100,
        or_zero=True,
    )
    precision: str = choice(
        "float32",
        "arithmetic of both networks, in calibration too; quantizers and losses stay in float32",
        "float32",
        "tf32",
        "bf16",
    )
    bank: str = choice(
        "auto",
        "where the images are: read from their files, or in memory; auto: in the files where they "
        "would take more than half of the free memory",
        "auto",
        "memory",
        "stream",
    )
    cuda_graph: bool = flag(True, "on a GPU, record the step once and replay it")
    compile: bool = flag(False, "run both networks through torch.compile")
    checkpoint_seconds: float = number(
        30.0,
        "what a killed run may lose, in every stage; more where saving would take over a twentieth "
        "of the time; 0 saves at every step",
        0,
        1e9,
        "seconds",
    )
    perturbation: Perturbation = section(Perturbation, "a second pass on moved images")
    losses: tuple[Loss, ...] = parts(
        LOSSES,
        "what is minimized; a recipe that names none takes SynQ's",
        (Distillation(), Features(), Cam()),
    )

    def loss(self, kind: type[AnyLoss]) -> AnyLoss | None:
        """The loss of a kind, or None where the recipe does without."""
        return next((loss for loss in self.losses if type(loss) is kind), None)
