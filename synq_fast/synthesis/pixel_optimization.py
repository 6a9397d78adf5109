"""Optimizing the pixels of one batch of images, iteration by iteration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from synq_fast.bank.crops import crop, random_crops
from synq_fast.errors import NonFiniteLossError
from synq_fast.optimize.optimizer_state import optimizer_tensors, restore_optimizer
from synq_fast.optimize.plateau import Plateau
from synq_fast.runtime.memory import send
from synq_fast.runtime.out_of_memory import memory_errors
from synq_fast.runtime.precision import tensor_float32
from synq_fast.runtime.replay import Replayed
from synq_fast.synthesis.pixel_checkpoint import PixelCheckpoint

LOOK_EVERY = 10
StepReport = Callable[[int, dict[str, float]], None]
LossTerms = dict[str, Tensor]


@dataclass(frozen=True)
class Schedule:
    """How long, and with which rates: the rate falls to a tenth when the loss stops improving."""

    steps: int
    learning_rate: float
    min_learning_rate: float
    patience: int


@dataclass(frozen=True)
class Augmentation:
    """Share of the iterations that see every image cropped and mirrored, and the crops' areas."""

    probability: float
    scale: tuple[float, float]


class PixelOptimization:
    """Minimizes a sum of terms over the pixels with Adam.

    Nothing waits for the device between two looks at the losses: the schedule lives on it, and
    what chance decides is drawn on the host.
    """

    def __init__(
        self,
        images: Tensor,
        terms: Callable[[Tensor], LossTerms],
        schedule: Schedule,
        generator: torch.Generator,
        *,
        augmentation: Augmentation | None = None,
        precision: str = "float32",
        record: bool = True,
    ) -> None:
        """Prepare.

        Args:
            images: (B, C, H, W) start, normalised space; not changed.
            terms: named scalar losses of (augmented) images.
            schedule: steps and rates.
            generator: CPU generator of the augmentation.
            augmentation: what the terms see instead of the images; by default nothing else.
            precision: of products and convolutions on a GPU, "float32" or "tf32".
            record: on a GPU, replay a recording of the iteration.
        """
        device = images.device
        images = images.clone(memory_format=torch.channels_last)
        self.images, self.terms, self.schedule = images.requires_grad_(), terms, schedule
        self.generator, self.augmentation = generator, augmentation
        self.precision = precision
        rate = torch.tensor(schedule.learning_rate, dtype=torch.float32, device=device)
        self.plateau = Plateau(rate, schedule.patience, schedule.min_learning_rate)
        self.optimizer = torch.optim.Adam([self.images], rate, fused=True, capturable=True)
        pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._plain, self._cropped = (
            Replayed(self._iterate, device, record=record, pool=pool) for _ in range(2)
        )
        self._names: tuple[str, ...] = ()
        self._window: list[Tensor] = []
        self.done = 0

    def run(
        self, report: StepReport | None = None, checkpoint: PixelCheckpoint | None = None
    ) -> Tensor:
        """Go to the last step; returns the images.

        Args:
            report: called with the step and the values of the terms, every tenth step.
            checkpoint: where to go on from, and where to save from time to time.

        Raises:
            NonFiniteLossError: a term is NaN or infinite; names the step and the term.
            OutOfMemoryError: the batch does not fit; its BatchNorm statistics cannot be split.
        """
        found = checkpoint.read() if checkpoint is not None else None
        if found is not None:
            self._restore(*found)
            if report is not None:
                report(self.done, {})
        while self.done < self.schedule.steps:
            with memory_errors("synthesis", "free memory or lower synthesis.batch_size"):
                self.advance()
            ended = self.done == self.schedule.steps
            look = ended or self.done % LOOK_EVERY == 0
            due = checkpoint is not None and checkpoint.due and not ended
            if not (look or due):
                continue
            values = self.look()
            if look and report is not None:
                report(self.done, values)
            if checkpoint is not None and due:
                checkpoint.write(self._tensors(), self.done)
        return self.images.detach()

    def advance(self) -> None:
        """Do one iteration."""
        crops = self._draw()
        self._window.append(
            self._plain() if crops is None else self._cropped(send(crops, self.images.device))
        )
        self.done += 1

    def _draw(self) -> Tensor | None:
        # Without an augmentation the generator is left to the caller.
        chance, generator = self.augmentation, self.generator
        if chance is None:
            return None
        drawn = torch.rand((), generator=generator, dtype=torch.float32, device="cpu")
        if drawn >= chance.probability:
            return None
        return random_crops(len(self.images), chance.scale, generator)

    def look(self) -> dict[str, float]:
        """The terms of the last iteration.

        Raises:
            NonFiniteLossError: a term since the last look was NaN or infinite.
        """
        # One transfer for all iterations since the last look.
        values = torch.stack(self._window).cpu()
        first = self.done - len(self._window)
        self._window.clear()
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise NonFiniteLossError(
                f'synthesis stopped at step {first + row}: the term "{self._names[column]}" is '
                f"{values[row, column].item()}. Lower synthesis.learning_rate, or check the "
                f"teacher for NaN weights"
            )
        return dict(zip(self._names, values[-1].tolist(), strict=True))

    def _iterate(self, *crops: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        with tensor_float32(self.precision == "tf32"):
            losses = self.terms(crop(self.images, *crops) if crops else self.images)
            values = torch.stack(list(losses.values()))
            total = values.sum()
            total.backward(inputs=[self.images])
        self._names = tuple(losses)
        self.optimizer.step()
        self.plateau.step(total.detach())
        return values.detach()

    def _tensors(self) -> dict[str, Tensor]:
        """Everything that decides the next iterations."""
        return {
            "images": self.images,
            "generator": self.generator.get_state(),
            **optimizer_tensors(self.optimizer),
            **self.plateau.state_dict(),
        }

    @torch.no_grad()
    def _restore(self, tensors: Mapping[str, Tensor], done: int) -> None:
        self.images.copy_(tensors["images"])
        self.generator.set_state(tensors["generator"])
        restore_optimizer(self.optimizer, tensors)
        self.plateau.load_state_dict(tensors)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plateau.rate
        self.done = done
