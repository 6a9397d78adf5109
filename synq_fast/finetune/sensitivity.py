"""Measuring what each quantizer of a network costs, on the images that calibration sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

import torch
from torch import Tensor, fx

from synq_fast.bank.batches import Batches
from synq_fast.distributed import ALONE, Ranks
from synq_fast.optimize.loop import Advice, Loop, Plain, Report
from synq_fast.quant import observing
from synq_fast.quant.activations import bypassing
from synq_fast.quant.bits import WIDTHS
from synq_fast.quant.placement import IMAGE_BITS
from synq_fast.quant.sensitivity import IMAGE, Measured, Part, alone, divergence, parts_of
from synq_fast.runtime.out_of_memory import memory_errors
from synq_fast.runtime.precision import tensor_float32
from synq_fast.storage.checkpoint_file import CheckpointFile

_ADVICE = Advice(
    "sensitivity",
    memory="free memory or lower quantization.calibration_batch_size",
    finite="Check the images and the teacher for NaN",
)
Build = Callable[[int], fx.GraphModule]
"""Makes the student, not calibrated, whose quantizers all have a width."""


class SensitivityLoop:
    """The measurements of one network, each a step: every quantizer at 2 bits, then at 3 and on."""

    def __init__(
        self,
        teacher: fx.GraphModule,
        build: Build,
        batches: Batches,
        count: int,
        *,
        checkpoint: CheckpointFile | None = None,
        fingerprint: str = "",
        ranks: Ranks = ALONE,
    ) -> None:
        """Draw the images and go on from what is measured already.

        The images are drawn anew in every process: a source that changes as it gives them is then
        the same afterwards, whether the run was interrupted or not.

        Args:
            teacher: the traced float model.
            build: makes the student at a width.
            batches: filtered images by number.
            count: how many batches.
            checkpoint: where to go on from, and where to save when that is due.
            fingerprint: of the run that a checkpoint belongs to; another's is passed over.
            ranks: who takes part; each measures everything, and the first one's numbers count.

        Raises:
            OutOfMemoryError: the images do not fit into memory.
        """
        with memory_errors(_ADVICE.title, _ADVICE.memory), closing(batches):
            images = [batches(step)[0].detach() for step in range(count)]
        self._parts, self._ranks = parts_of(build(WIDTHS[0])), ranks
        self._work = _Measurement(teacher, build, self._parts, images)
        device = next(teacher.parameters()).device
        self._loop = Loop(
            self._work,
            len(self._work.steps),
            _ADVICE,
            device,
            every=1,
            record=False,
            checkpoint=checkpoint,
            fingerprint=fingerprint,
        )
        self.resumed = self._loop.resume(ranks)

    @property
    def steps(self) -> int:
        """All measurements."""
        return self._loop.steps

    def run(self, report: Report | None = None) -> tuple[Measured, ...]:
        """Make what measurements are missing; every quantizer with what it costs.

        Raises:
            NonFiniteLossError: a logit is NaN or infinite.
            OutOfMemoryError: a batch does not fit; its ranges depend on it as a whole.
        """
        if self.resumed and report is not None:
            report({"step": self._loop.done})
        self._loop.run(report)
        # Equal already on equal devices; others may round differently.
        found: list[float] = self._ranks.from_first(self._work.losses.tolist)
        losses: dict[str, dict[int, float]] = {part.name: {} for part in self._parts}
        for (bits, part), loss in zip(self._work.steps, found, strict=True):
            losses[part.name][bits] = loss
        return tuple(Measured(p.name, p.kind, p.size, losses[p.name]) for p in self._parts)


class _Measurement(Plain):
    """The divergence that one quantizer at one width makes."""

    names = ("kl",)

    def __init__(
        self, teacher: fx.GraphModule, build: Build, parts: list[Part], images: list[Tensor]
    ) -> None:
        self.steps = [
            (bits, part)
            for bits in WIDTHS
            for part in parts
            if part.kind != IMAGE or bits == IMAGE_BITS
        ]
        self.losses = torch.zeros(len(self.steps), dtype=torch.float64, device="cpu")
        self._teacher, self._build, self._images = teacher, build, images
        self._logits: list[Tensor] | None = None
        self._student: tuple[int, fx.GraphModule] | None = None
        self._step = 0

    def prepare(self, step: int) -> tuple[Tensor, ...]:
        self._step = step
        return ()

    def __call__(self, *inputs: Tensor) -> Tensor:
        bits, part = self.steps[self._step]
        # In float32 whatever the recipe's precision: what bf16 costs is of the order of eight bits.
        with torch.no_grad(), tensor_float32(False):
            if self._logits is None:
                self._logits = [self._teacher(images) for images in self._images]
            student = self._calibrated(bits)
            with alone(student, part):
                found = [
                    divergence(logits, student(images))
                    for logits, images in zip(self._logits, self._images, strict=True)
                ]
        loss = torch.cat(found).mean()
        self.losses[self._step] = loss
        return loss[None]

    def _calibrated(self, bits: int) -> fx.GraphModule:
        """The student at a width, its ranges those of the float network's activations."""
        if self._student is None or self._student[0] != bits:
            self._student = None  # one at a time in memory
            student = self._build(bits)
            with observing(student), bypassing(student):
                for images in self._images:
                    student(images)
            self._student = bits, student
        return self._student[1]

    def state(self) -> dict[str, Tensor]:
        return {"losses": self.losses}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.losses.copy_(tensors["losses"])
