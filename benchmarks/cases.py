"""Models and batches that whole steps are measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from synq_fast.models import Teacher, load_teacher

from . import harness

RESNET20 = "cifar10-resnet20"
WEIGHT_BITS, ACTIVATION_BITS = 4, 4


@dataclass(frozen=True)
class Case:
    """A model by a name that ``load_teacher`` knows, a batch and, where not its own, a size."""

    model: str = RESNET20
    batch: int = 16
    size: int | None = None

    def teacher(self) -> Teacher:
        """An untrained model on the measured device whose BatchNorms fit its inputs.

        Raises:
            ModelError: there is no such model, or it does not take images of this size.
        """
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if self.size is None:
                teacher = load_teacher(self.model, weights="random")
            elif ":" in self.model:
                shape = (3, self.size, self.size)
                teacher = load_teacher(self.model, weights="random", input_shape=shape)
            else:
                known = load_teacher(self.model, weights="random")
                shape = (known.input_shape[0], self.size, self.size)
                teacher = load_teacher(known.module, input_shape=shape)
            fit_statistics(teacher.module, torch.randn(8, *teacher.input_shape))
        return teacher.to(harness.DEVICE)


@dataclass(frozen=True)
class Workload:
    """A case's model and one batch of images and labels, on the measured device."""

    case: Case
    teacher: Teacher
    images: Tensor
    """(B, C, H, W) in normalised space."""
    labels: Tensor
    """(B,) int64."""

    @property
    def large(self) -> bool:
        """Whether a step takes seconds on a CPU; such images get the published ImageNet setting."""
        return self.images.shape[-1] >= 64

    @property
    def title(self) -> str:
        """Model, pixels and batch."""
        return f"{self.case.model} {self.images.shape[-1]}px batch {self.case.batch}"

    def titled(self, precision: str) -> str:
        """The title and, where there is a choice, what the networks compute in."""
        return self.title if len(harness.precisions()) == 1 else f"{self.title}, {precision}"

    def rounds(self, small: int, large: int) -> int:
        """A number of rounds; on a GPU no step is large."""
        return large if self.large and harness.DEVICE.type == "cpu" else small


def load(case: Case) -> Workload:
    """The case, ready to be measured."""
    teacher = case.teacher()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(case.batch, *teacher.input_shape, generator=generator)
    labels = torch.randint(teacher.num_classes, (case.batch,), generator=generator)
    return Workload(case, teacher, images.to(harness.DEVICE), labels.to(harness.DEVICE))


@torch.no_grad()
def fit_statistics(module: nn.Module, images: Tensor) -> None:
    """Without this the activations of a deep untrained network grow from block to block."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    module(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def chosen(config: pytest.Config, defaults: list[Case]) -> list[Case]:
    """The case that the options name, else the suite's own ones."""
    model, batch, size = (config.getoption(f"--{name}") for name in ("model", "batch", "size"))
    if model is None and batch is None and size is None:
        return defaults
    return [Case(model or RESNET20, batch or defaults[0].batch, size)]


def asked(option: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a benchmark that runs, alone, only when its option is given."""
    return pytest.mark.asked(option)
