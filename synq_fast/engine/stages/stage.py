"""What stages hand on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from torch import fx

from synq_fast.bank.source import ImageSource
from synq_fast.storage.run_folder import HistoryRecord

if TYPE_CHECKING:
    from synq_fast.engine.run import Run


@dataclass(frozen=True)
class Made:
    """What a run has so far."""

    student: fx.GraphModule
    """The quantized model, in place."""
    images: ImageSource | None = None
    history: list[HistoryRecord] = field(default_factory=list)
    """The records of training, of all stages."""

    @property
    def source(self) -> ImageSource:
        """The images, which a recipe's first stage makes."""
        assert self.images is not None
        return self.images


class Stage(Protocol):
    """A part of a run; killed at any moment, its next call goes on where it was."""

    def __call__(self, run: Run, made: Made) -> Made:
        """Do it, and hand on what is made."""
        ...
