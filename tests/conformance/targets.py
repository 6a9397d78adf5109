"""What the ops run on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch

from synq_fast import ops
from synq_fast.testing import Sample

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Target(NamedTuple):
    """A way to run the ops.

    Attributes:
        backend: What `ops.backend` takes.
        device: Where the tensors are.
        slow: Whether kernels run one thread at a time, on small samples.
    """

    backend: str
    device: str
    slow: bool = False

    def takes(self, sample: Sample, dtype: torch.dtype, turn: int) -> bool:
        """Says whether the sample in this place of its case runs here, in reasonable time."""
        if not self.slow:
            return True
        if sample.large:
            return False
        # Half types differ in loads and stores alone.
        return dtype == torch.float32 or (turn % 5 == 0 and sample.tensors[0].numel() <= 4096)


TARGETS = {
    "reference": Target("reference", "cpu"),
    "cpu": Target("cpu", "cpu"),
    "reference on a GPU": Target("reference", "cuda"),
    "cuda": Target("cuda", "cuda"),
    "triton": Target("triton", "cuda"),
}
INTERPRETER = {"interpreter": Target("triton", "cpu", slow=True)}


def parameters() -> list[Any]:
    """The targets of this process: Triton interprets its kernels from the start or never."""
    chosen = INTERPRETER if INTERPRETED else TARGETS
    only = os.environ.get("SYNQ_FAST_TEST_TARGET")
    return [
        pytest.param(target, id=name, marks=[pytest.mark.cuda] * (target.device == "cuda"))
        for name, target in chosen.items()
        if only in (None, name)
    ]


@contextmanager
def using(target: Target) -> Iterator[Any]:
    """The namespace of the ops on a target; skips by name what this machine lacks."""
    if target.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    reason = ops.available_backends()[target.backend]
    if reason is not None:
        pytest.skip(f"backend {target.backend}: {reason}")
    with ops.backend(target.backend):
        yield ops


def native() -> None:
    """Skips by name where the native kernels are missing."""
    reason = ops.available_backends()["cpu"]
    if reason is not None:
        pytest.skip(f"backend cpu: {reason}")
