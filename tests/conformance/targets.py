"""What the ops run on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch

from synq_fast import ops
from synq_fast.testing import OpCase, Sample
from synq_fast.testing.layouts import LAYOUTS
from tests.emulation.filters import LONGEST
from tests.emulation.launching import Setting
from tests.emulation.namespace import Emulated

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ONLY = os.environ.get("SYNQ_FAST_TEST_TARGET")


class Target(NamedTuple):
    """A way to run the ops.

    Attributes:
        backend: What `ops.backend` takes.
        device: Where the tensors are.
        slow: Whether kernels run one thread at a time, on small samples.
        setting: What the emulated device is like, if it is one.
        every: Which samples run here: all, or one in so many.
    """

    backend: str
    device: str
    slow: bool = False
    setting: Setting | None = None
    every: int = 1

    @property
    def layouts(self) -> tuple[str, ...]:
        """Those to test: of the others the ops make a copy before their kernels run."""
        if self.slow:
            return "given", "channels_last"
        if self.backend == "cpu" and ONLY is not None:
            # What decides about copies is one code for all instruction sets, asked with one.
            return "given", "channels_last", "offset"
        return tuple(LAYOUTS)

    def runs(self, sample: Sample) -> bool:
        """Says whether there are kernels for it: transforms filter what the emulated do not."""
        if self.setting is None or "cutoff" not in sample.options:
            return True
        gaussian = sample.options.get("kind", "gaussian") == "gaussian"
        return gaussian and max(sample.tensors[0].shape[-2:]) <= LONGEST

    def takes(self, case: OpCase, sample: Sample, dtype: torch.dtype, turn: int) -> bool:
        """Says whether the sample in this place of its case runs here, in reasonable time."""
        if not self.slow:
            # Half types differ in loads and stores alone, whatever the instruction set. One source
            # is compiled for every set: each takes other samples, and csrc/tests run all of them to
            # the ends of vectors and memory.
            another_isa = self.backend == "cpu" and ONLY is not None
            if another_isa:
                place = os.environ.get("SYNQ_FAST_CPU_ISA") == "avx2"
                return turn % (3 if dtype == torch.float32 else 6) == place
            # They are widened first: by the reference whole, by kernels in loads and stores.
            one_in = 1 if dtype == torch.float32 else 3 if self.backend == "reference" else 2
            return turn % one_in == 0
        # The interpreter spends seconds on programs with inner loops.
        every = 6 if self.backend == "triton" and not case.exact else self.every
        if sample.large or turn % every or not self.runs(sample):
            return False
        if self.backend == "triton" and dtype == torch.bfloat16 and _has_subnormals(sample):
            return False  # the interpreter takes those of bfloat16 for zeros
        one_in = max(2, 6 // every)
        chosen = turn // every % one_in == 0 and sample.tensors[0].numel() <= 4096
        return dtype == torch.float32 or chosen


def _has_subnormals(sample: Sample) -> bool:
    x = sample.tensors[0]
    return bool(((x != 0) & (x.abs() < torch.finfo(torch.float32).smallest_normal)).any())


TARGETS = {
    "reference": Target("reference", "cpu"),
    "cpu": Target("cpu", "cpu"),
    "emulator": Target("emulated", "cpu", True, Setting()),
    "emulator, unaligned": Target("emulated", "cpu", True, Setting(3, 1, 1), every=3),
    "emulator, aligned otherwise": Target("emulated", "cpu", True, Setting(3, 2, 3), every=5),
    "reference on a GPU": Target("reference", "cuda"),
    "cuda": Target("cuda", "cuda"),
    "triton": Target("triton", "cuda"),
}
INTERPRETER = {"interpreter": Target("triton", "cpu", slow=True, every=3)}


def parameters(*, emulated: bool = False) -> list[Any]:
    """The targets of this process: Triton interprets its kernels from the start or never."""
    chosen = INTERPRETER if INTERPRETED else TARGETS
    return [
        pytest.param(target, id=name, marks=[pytest.mark.cuda] * (target.device == "cuda"))
        for name, target in chosen.items()
        if ONLY in (None, name) and (emulated or target.setting is None)
    ]


@contextmanager
def using(target: Target) -> Iterator[Any]:
    """The namespace of the ops on a target; skips by name what this machine lacks."""
    if target.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if target.setting is not None:
        yield Emulated(target.setting)
        return
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
