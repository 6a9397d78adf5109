"""A step on a batch that does not fit into memory: in parts, with the whole batch's gradient."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from synq_fast.errors import OutOfMemoryError, SynqFastWarning
from synq_fast.finetune.step import Step
from synq_fast.quant.held import held_weights, holders
from synq_fast.runtime.out_of_memory import is_out_of_memory, reason_of
from synq_fast.runtime.precision import tensor_float32


class MicroBatches:
    """Runs a step on a whole batch, or on as few parts of it as memory allows.

    When an allocation fails, the micro-batch is halved for this and all later steps. Terms and
    gradients stay those of the whole batch, up to rounding: every term is a mean over images, and
    BatchNorm uses its running statistics. A step with another kind of term is never split.
    """

    def __init__(self) -> None:
        """Begin with whole batches."""
        self.size = 0
        """Images per part; 0 while whole batches fit."""

    def __call__(self, step: Step, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Give the student's parameters, whose gradients are clear, those of the total loss.

        Args:
            step: the step.
            images: (B, C, H, W) as for the step.
            labels: (B,) int64.

        Returns:
            The step's terms.

        Warns:
            SynqFastWarning: the micro-batch was halved.

        Raises:
            OutOfMemoryError: one image does not fit, or the batch does not and may not be split.
        """
        while True:
            size = min(self.size or len(labels), len(labels))
            try:
                if size == len(labels):
                    return step(images, labels)
                return backward_in_parts(step, images, labels, size)
            except (RuntimeError, MemoryError) as error:
                # A recording that has failed is given up as a whole; eager passes do fit.
                recording = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
                if recording or not is_out_of_memory(error):
                    raise
                reason = reason_of(error)
            # The error is gone here, and with it the frames that hold the attempt's tensors.
            for parameter in step.parameters:
                parameter.grad = None
            if not step.per_image:
                whole = [n for loss in step.losses if not loss.per_image for n in loss.names]
                raise OutOfMemoryError(
                    f"fine-tuning ran out of memory ({reason}), and {', '.join(whole)} depends on "
                    f"the batch as a whole, so that it cannot be split; free memory or lower "
                    f"finetune.batch_size"
                )
            self._halve(size, reason)

    def _halve(self, size: int, reason: str) -> None:
        if size == 1:
            raise OutOfMemoryError(
                f"fine-tuning ran out of memory with a single image ({reason}); free memory, take "
                f"a machine with more, or switch terms off (finetune.perturbation.weight = 0); the "
                f"last checkpoint is kept"
            )
        self.size = (size + 1) // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f"fine-tuning ran out of memory ({reason}): going on with micro-batches of "
            f"{self.size} images, whose gradients are added up; losses and gradients stay those "
            f"of the batch, a step takes longer",
            SynqFastWarning,
            stacklevel=3,
        )


def backward_in_parts(step: Step, images: Tensor, labels: Tensor, size: int) -> dict[str, Tensor]:
    """What ``step(images, labels)`` does, ``size`` images at a time."""
    sums: dict[str, Tensor] = {}
    tf32 = tensor_float32(step.recipe.precision == "tf32")
    with tf32, held_weights(step.student_module), _gradients_kept(step) as leaves:
        for part, marks in zip(images.detach().split(size), labels.split(size), strict=True):
            share = len(marks) / len(labels)
            losses = {name: share * loss for name, loss in step.terms(part, marks).items()}
            total = torch.stack(list(losses.values())).sum()
            total.backward(inputs=[*step.parameters, *leaves])
            for name, loss in losses.items():
                sums[name] = sums[name] + loss.detach() if name in sums else loss.detach()
    return sums


@contextmanager
def _gradients_kept(step: Step) -> Iterator[list[Tensor]]:
    """Collect gradients at the held values, and pass the sums on to the parameters at the end.

    The graph behind them belongs to all parts; a part's backward frees only its own.
    """
    held: list[Tensor] = []
    leaves: list[Tensor] = []

    def leaf_of(value: Tensor) -> Tensor:
        if not value.requires_grad:
            return value
        held.append(value)
        leaves.append(value.detach().requires_grad_())
        return leaves[-1]

    for holder in holders(step.student_module):
        value = holder.value()
        one = isinstance(value, Tensor)
        holder.hold(leaf_of(value) if one else tuple(map(leaf_of, value)))
    yield leaves
    reached = [pair for pair in zip(held, leaves, strict=True) if pair[1].grad is not None]
    torch.autograd.backward(
        [value for value, _ in reached],
        [leaf.grad for _, leaf in reached],
        inputs=step.parameters,
    )
