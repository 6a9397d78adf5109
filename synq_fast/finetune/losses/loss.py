"""What a fine-tuning loss is: its fields are its recipe section, its call the mathematics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from synq_fast.graph.structure import Structure
from synq_fast.graph.taps import Tap


@dataclass(frozen=True)
class View:
    """What one forward pass of one network showed to a loss."""

    logits: Tensor
    """(B, classes)"""
    values: tuple[Tensor, ...] = ()
    """What the loss's taps read, in their order."""


@dataclass(frozen=True)
class Batch:
    """Everything about one pass that is not a network's output."""

    labels: Tensor
    """(B,) int64"""
    size: tuple[int, int]
    """(height, width) of the images."""
    judge: Tensor | None = None
    """(B, classes) teacher logits that decide which labels count; None: those of this pass."""
    done: Tensor | float = 0.0
    """Share of the training that is done, 0 to 1; 0-d where a recorded step reads it anew."""


class Loss(Protocol):
    """A part of what fine-tuning minimizes: a frozen dataclass of its recipe's values."""

    names: ClassVar[tuple[str, ...]]
    """What its values are called in records."""
    per_image: ClassVar[bool]
    """Whether each value is a mean over images, so that a batch may be split."""

    @property
    def active(self) -> bool:
        """Whether its factors leave anything of it."""
        ...

    @property
    def reads_labels(self) -> bool:
        """Whether it needs the labels of the images, which mixed images do not have."""
        ...

    @property
    def perturbed(self) -> bool:
        """Whether it also counts in the pass on moved images."""
        ...

    def taps(self, structure: Structure) -> tuple[Tap, ...]:
        """What it reads in both networks beside the logits.

        Raises:
            ModelError: the networks have nothing of that kind.
        """
        ...

    def __call__(self, student: View, teacher: View, batch: Batch) -> tuple[Tensor, ...]:
        """The weighted scalars that ``names`` names."""
        ...
