"""Finding the activation ranges of a student, in a form that a killed process can take up again."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import fx

from synq_fast.bank.batches import BatchSource
from synq_fast.errors import CheckpointError, SynqFastWarning
from synq_fast.quant import held_weights, observing
from synq_fast.runtime.out_of_memory import memory_errors
from synq_fast.runtime.precision import autocast, tensor_float32
from synq_fast.storage.checkpoint_file import CheckpointFile


@torch.no_grad()
def calibrate(
    student: fx.GraphModule,
    batches: BatchSource,
    count: int,
    *,
    report: Callable[[int], None] | None = None,
    checkpoint: CheckpointFile | None = None,
    fingerprint: str = "",
    precision: str = "float32",
) -> None:
    """Observe the student's activations on batches 0 to ``count - 1`` and freeze their ranges.

    Args:
        student: the quantized model, changed in place.
        batches: filtered images by number.
        count: how many batches.
        report: called with the number of batches done.
        checkpoint: where to go on from, and where to save when that is due.
        fingerprint: of the run that a checkpoint belongs to; another's is passed over.
        precision: of the network, "float32", "tf32" or "bf16", as in fine-tuning.

    Raises:
        OutOfMemoryError: a batch does not fit; the ranges depend on it as a whole.
    """
    advice = "free memory or lower quantization.calibration_batch_size"
    with observing(student), held_weights(student), memory_errors("calibration", advice):
        done = _restore(student, checkpoint, fingerprint) if checkpoint else 0
        for step in range(done, count):
            images = batches(step)[0]
            with tensor_float32(precision == "tf32"), autocast(images.device, precision):
                student(images)
            if checkpoint is not None and checkpoint.due and step + 1 < count:
                texts = {"batches": str(step + 1), "fingerprint": fingerprint}
                # While they observe, quantizers hold their observers' state beside the ranges.
                checkpoint.write(student.state_dict(), texts)
            if report is not None:
                report(step + 1)


def _restore(student: fx.GraphModule, checkpoint: CheckpointFile, fingerprint: str) -> int:
    try:
        found = checkpoint.read()
    except CheckpointError as error:
        warnings.warn(f"{error}; calibrating from the first batch", SynqFastWarning, stacklevel=3)
        checkpoint.discard()
        return 0
    if found is None or found[1].get("fingerprint") != fingerprint:
        return 0
    student.load_state_dict(found[0])
    return int(found[1]["batches"])
