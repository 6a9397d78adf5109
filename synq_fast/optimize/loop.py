"""The one loop that everything iterative runs in: checks, records, checkpoints, recordings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from synq_fast.distributed import ALONE, Ranks
from synq_fast.errors import CheckpointError, NonFiniteLossError, SynqFastWarning
from synq_fast.runtime.out_of_memory import memory_errors
from synq_fast.runtime.replay import Replayed
from synq_fast.storage.checkpoint_file import CheckpointFile

Record = dict[str, float]
"""``step``, the iteration's own figures, and the mean of each term since the last record."""
Report = Callable[[Record], None]
_WINDOW = "window"


class Iteration(Protocol):
    """What a loop repeats."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the terms; known after the first call."""
        ...

    def prepare(self, step: int) -> tuple[Tensor, ...]:
        """Set rates and draw what chance decides about a step, on the host; gives the inputs."""
        ...

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Do the work; returns the detached terms (terms,).

        On a GPU it is recorded, one recording for all inputs of the same shapes: it may not wait
        for the device or draw random numbers, and keeps what it changes at fixed addresses.
        """
        ...

    def finish(self, terms: Tensor) -> Tensor:
        """What follows and cannot be recorded; returns the terms to keep."""
        ...

    def figures(self) -> Record:
        """What a record says beside the terms, e.g. the learning rate."""
        ...

    def trained(self) -> Sequence[Tensor]:
        """What must stay finite."""
        ...

    def close(self) -> None:
        """End what works in the background."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back a state, whose tensors may lie on another device."""
        ...


class Plain:
    """An iteration without figures of its own, that does everything in its call."""

    def finish(self, terms: Tensor) -> Tensor:
        """Nothing."""
        return terms

    def figures(self) -> Record:
        """None."""
        return {}

    def trained(self) -> Sequence[Tensor]:
        """None: the terms alone are checked."""
        return ()

    def close(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Advice:
    """What a loop is called, and what its errors tell people to do."""

    title: str
    """E.g. ``fine-tuning``."""
    memory: str
    """Where memory is short."""
    finite: str
    """Where a term, or what is trained, is not finite."""
    trained: str = "weights"
    """What is trained."""
    damaged: str = ""
    """Where all checkpoints are damaged; without it the loop then begins again, with a warning,
    as it does in the place of another run's."""


class Loop:
    """Repeats an iteration up to a last step; killed at any moment, it goes on where it was.

    Nothing waits for the device between two records: terms are checked a window at a time.
    """

    def __init__(
        self,
        iteration: Iteration,
        steps: int,
        advice: Advice,
        device: torch.device,
        *,
        every: int,
        record: bool = True,
        checkpoint: CheckpointFile | None = None,
        fingerprint: str = "",
        keeps_end: bool = True,
    ) -> None:
        """Prepare.

        Args:
            iteration: what is repeated.
            steps: up to which step.
            advice: for errors.
            device: where the work is done.
            every: steps from one record to the next.
            record: on a GPU, replay recordings of the work.
            checkpoint: where to go on from, and where to save when that is due.
            fingerprint: of what the result depends on; kept in the checkpoints.
            keeps_end: also save after the last step.
        """
        self.iteration, self.steps, self.advice, self.every = iteration, steps, advice, every
        self.checkpoint, self.fingerprint, self.keeps_end = checkpoint, fingerprint, keeps_end
        self.done = 0
        self.window: list[Tensor] = []
        """The terms of each step since the last record."""
        self._device, self._record = device, record
        self._works: dict[tuple[torch.Size, ...], Replayed] = {}
        self._pool: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def resume(self, ranks: Ranks = ALONE) -> bool:
        """Continue all ranks from the first one's last whole checkpoint; says whether there is one.

        Raises:
            CheckpointError: all checkpoints are damaged, or belong to another run, and the loop's
                advice is not to begin again.
        """
        found = ranks.from_first(self._read)
        if found is None:
            return False
        tensors, self.done = found
        window = tensors.pop(_WINDOW, None)
        self.window = [] if window is None else list(window.to(self._device))
        self.iteration.restore(tensors)
        return True

    def _read(self) -> tuple[dict[str, Tensor], int] | None:
        if self.checkpoint is None:
            return None
        try:
            found = self.checkpoint.read()
        except CheckpointError as error:
            if self.advice.damaged:
                raise CheckpointError(f"{error}; {self.advice.damaged}") from error
            text = f"{error}; {self.advice.title} begins again"
            warnings.warn(text, SynqFastWarning, stacklevel=3)
            self.checkpoint.discard()
            return None
        if found is None:
            return None
        tensors, texts = found
        if texts.get("fingerprint") != self.fingerprint:
            if not self.advice.damaged:
                return None
            raise CheckpointError(
                f"the checkpoint {self.checkpoint.path} belongs to another model, recipe, bit "
                f"width or seed; resume with what the run was started with, or choose another run "
                f"folder"
            )
        return tensors, int(texts["step"])

    def run(self, report: Report | None = None) -> list[Record]:
        """Go to the last step; returns the records, each of which ``report`` sees as it is made.

        Raises:
            NonFiniteLossError: a term, or what is trained, is NaN or infinite; the last checkpoint
                stays.
            StorageError: a checkpoint cannot be written; the last one stays.
            OutOfMemoryError: the work does not fit into memory.
        """
        history: list[Record] = []
        while self.done < self.steps:
            self.advance()
            ended = self.done == self.steps
            if ended or self.done % self.every == 0:
                history.append(self.look())
                if report is not None:
                    report(history[-1])
            if self.checkpoint is not None and (self.keeps_end if ended else self.checkpoint.due):
                self.save()
        return history

    def advance(self) -> Tensor:
        """Do one step; returns its terms."""
        with memory_errors(self.advice.title, self.advice.memory):
            inputs = self.iteration.prepare(self.done)
            terms = self.iteration.finish(self._work(inputs)(*inputs))
        self.done += 1
        self.window.append(terms)
        return terms

    def _work(self, inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self._works:
            record, pool = self._record, self._pool
            self._works[shapes] = Replayed(self.iteration, self._device, record=record, pool=pool)
        return self._works[shapes]

    def save(self) -> None:
        """Write a checkpoint, where the loop has one.

        Raises:
            NonFiniteLossError: what would be written is not finite; the last checkpoint stays.
            StorageError: it cannot be written; the last checkpoint stays.
        """
        if self.checkpoint is None:
            return
        self._check()
        tensors = self.iteration.state()
        if self.window:
            tensors[_WINDOW] = torch.stack(self.window)
        texts = {"step": str(self.done), "fingerprint": self.fingerprint}
        self.checkpoint.write(tensors, texts)

    def look(self) -> Record:
        """The record of the steps since the last one.

        Raises:
            NonFiniteLossError: a term, or what is trained, is NaN or infinite.
        """
        values = self._check()
        self.window.clear()
        means = values.mean(0).tolist() if len(values) else []
        names = self.iteration.names
        return {
            "step": self.done,
            **self.iteration.figures(),
            **dict(zip(names, means, strict=True)),
        }

    def _check(self) -> Tensor:
        """The window (steps, terms) on the host, in one transfer."""
        title, finite = self.advice.title, self.advice.finite
        kept = "; the last good checkpoint is kept" if self.checkpoint is not None else ""
        values = (
            torch.stack(self.window).cpu()
            if self.window
            else torch.zeros(0, 0, dtype=torch.float32, device="cpu")
        )
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            step = self.done - len(values) + row
            raise NonFiniteLossError(
                f'{title} stopped at step {step}: the term "{self.iteration.names[column]}" is '
                f"{values[row, column].item()}. {finite}{kept}"
            )
        trained = self.iteration.trained()
        # An update can overflow after a loss that is still finite.
        if trained and not torch.stack([p.isfinite().all() for p in trained]).all():
            raise NonFiniteLossError(
                f"{title} stopped: the {self.advice.trained} are not finite after step "
                f"{self.done}. {finite}{kept}"
            )
        return values
