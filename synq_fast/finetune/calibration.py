"""Finding the activation ranges of a student."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

import torch
from torch import Tensor, fx

from synq_fast.bank.batches import Batches
from synq_fast.distributed import ALONE, Ranks
from synq_fast.optimize.loop import Advice, Loop, Plain, Report
from synq_fast.optimize.named import named, part_of
from synq_fast.quant import ActivationQuantizer, held_weights, observing
from synq_fast.runtime.precision import autocast, tensor_float32
from synq_fast.storage.checkpoint_file import CheckpointFile

_ADVICE = Advice(
    "calibration",
    memory="free memory or lower quantization.calibration_batch_size",
    finite="Check the images and the teacher for NaN",
)


class _Observation(Plain):
    """Shows a student one batch."""

    names = ()

    def __init__(self, student: fx.GraphModule, batches: Batches, precision: str) -> None:
        self.student, self.batches, self.precision = student, batches, precision

    def prepare(self, step: int) -> tuple[Tensor, ...]:
        return self.batches.inputs(step)

    def __call__(self, *inputs: Tensor) -> Tensor:
        images, _, _ = self.batches.made(*inputs)
        tf32 = tensor_float32(self.precision == "tf32")
        with torch.no_grad(), tf32, autocast(images.device, self.precision):
            self.student(images)
        return torch.zeros(0, dtype=torch.float32, device=images.device)

    def state(self) -> dict[str, Tensor]:
        # While they observe, quantizers hold their observers' state beside the ranges.
        return {
            **named("model", self.student.state_dict()),
            **named("batches", self.batches.state()),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.student.load_state_dict(part_of(tensors, "model"))
        self.batches.restore(part_of(tensors, "batches"))


def calibrate(
    student: fx.GraphModule,
    batches: Batches,
    count: int,
    *,
    report: Report | None = None,
    checkpoint: CheckpointFile | None = None,
    fingerprint: str = "",
    precision: str = "float32",
    ranks: Ranks = ALONE,
) -> None:
    """Observe the student's activations on batches 0 to ``count - 1`` and freeze their ranges.

    Every rank sees all batches: a range depends on those of the layers before it, batch by batch,
    so ranks that saw a part each would find other ranges than one rank alone.

    Args:
        student: the quantized model, changed in place.
        batches: filtered images by number.
        count: how many batches.
        report: sees a record for each batch.
        checkpoint: where to go on from, and where to save when that is due.
        fingerprint: of the run that a checkpoint belongs to; another's is passed over.
        precision: of the network, "float32", "tf32" or "bf16", as in fine-tuning.
        ranks: who takes part.

    Raises:
        OutOfMemoryError: a batch does not fit; the ranges depend on it as a whole.
    """
    device = next(student.parameters()).device
    loop = Loop(
        _Observation(student, batches, precision),
        count,
        _ADVICE,
        device,
        every=1,
        record=False,
        checkpoint=checkpoint,
        fingerprint=fingerprint,
    )
    with observing(student), held_weights(student), closing(batches):
        if loop.resume(ranks) and report is not None:
            report({"step": loop.done})
        loop.run(report)
    # Equal already on equal devices; others may round differently.
    for quantizer in student.modules():
        if isinstance(quantizer, ActivationQuantizer):
            ranks.widen(quantizer.range_min, quantizer.range_max)
