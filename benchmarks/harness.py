"""Shared measuring: the device, fixed threads, two allocator settings, interleaved rounds."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from synq_fast.runtime.replay import WARM_UP
from synq_fast.runtime.turns import in_turns

from . import cuda_timing
from .cuda_timing import Sample
from .rows import Comparison as Comparison
from .rows import Timing as Timing

THREADS = 2
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Calls on a GPU before the first that is timed: what records itself has done so, and replayed once.
RECORDED = WARM_UP + 2

_Size = TypeVar("_Size")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MEBIBYTE = 1 << 20
# glibc raises its mmap threshold by itself, but not above 32 MiB, and keeps trim at twice that.
_ALLOCATORS = {
    "default": (32 * _MEBIBYTE, 64 * _MEBIBYTE),
    "raised": (1024 * _MEBIBYTE, 2047 * _MEBIBYTE),
}


def use_device(name: str) -> None:
    """Measure on ``cpu`` or ``cuda`` from here on; suites read ``DEVICE`` when they are collected.

    Raises:
        RuntimeError: torch finds no CUDA device.
    """
    global DEVICE
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("torch finds no CUDA device on this machine")
    DEVICE = torch.device(name)


def sizes(*, cpu: Sequence[_Size], cuda: Sequence[_Size] | None = None) -> list[_Size]:
    """The sizes of a suite on the device that is measured.

    Args:
        cpu: sizes on a CPU, where a row should take seconds.
        cuda: sizes on a GPU, one of them at least 64 MiB; by default those of the CPU.
    """
    return list(cpu if cuda is None or DEVICE.type == "cpu" else cuda)


def dtypes() -> list[torch.dtype]:
    """What activations are stored in: on a GPU also as bf16 networks have them."""
    return [torch.float32] if DEVICE.type == "cpu" else [torch.float32, torch.bfloat16]


def layouts() -> list[str]:
    """How activations lie in memory, where a suite has no layouts of its own on a CPU."""
    return ["contiguous"] if DEVICE.type == "cpu" else ["contiguous", "channels_last"]


def laid(values: Tensor, layout: str, dtype: torch.dtype) -> Tensor:
    """Returns values on the measured device, in a type and a layout."""
    return values.to(DEVICE, dtype, memory_format=MEMORY_FORMATS[layout])


def kind(layout: str, dtype: torch.dtype) -> str:
    """What a row's title says of both: nothing of contiguous float32."""
    names = [layout] if layout != "contiguous" else []
    names += [str(dtype).removeprefix("torch.")] if dtype != torch.float32 else []
    return "".join(f" {name}" for name in names)


def precisions() -> list[str]:
    """What the networks of a comparison compute in, all columns alike: TF32 is a GPU's."""
    return ["float32"] if DEVICE.type == "cpu" else ["float32", "tf32"]


def allocator_settings() -> list[str]:
    """Settings that make a difference here: both with glibc and CPU tensors, else the default."""
    return list(_ALLOCATORS) if DEVICE.type == "cpu" and _glibc() is not None else ["default"]


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


@contextmanager
def allocator(setting: str) -> Iterator[None]:
    """Run the block with glibc's ``default`` or ``raised`` mmap and trim thresholds.

    By default each block above 32 MiB is mapped for itself and handed back when freed, so every
    large output pays page faults. Raised thresholds let freed memory be used again.
    """
    glibc = _glibc()

    def set_thresholds(name: str) -> None:
        if glibc is not None:
            mmap_threshold, trim_threshold = _ALLOCATORS[name]
            if not (
                glibc.mallopt(_M_MMAP_THRESHOLD, mmap_threshold)
                and glibc.mallopt(_M_TRIM_THRESHOLD, trim_threshold)
            ):
                raise RuntimeError(f'mallopt refused the "{name}" allocator setting')
            glibc.malloc_trim(0)

    set_thresholds(setting)
    try:
        yield
    finally:
        set_thresholds("default")


@contextmanager
def fixed_threads(count: int = THREADS) -> Iterator[None]:
    """Run the block with ``count`` intra-op threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronize() -> None:
    """Wait for the device; nothing on a CPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def interleave(
    columns: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    calls: int = 1,
    warmup: int = 2,
    clock: str = "device",
    after_round: Callable[[int], None] | None = None,
) -> dict[str, Timing]:
    """Time several callables in turn, so that a disturbance of the machine meets all of them.

    Args:
        columns: name to callable; each is called without arguments.
        rounds: how often the whole sequence of columns is run; at least 2.
        calls: calls of one column in a row, timed together by the wall clock.
        warmup: untimed calls of each column first; on a GPU by the wall clock at least
            ``RECORDED``, so that no call is timed before it is replayed.
        clock: "device" takes a GPU's own time, of a CUDA graph where the work can be captured;
            "wall" includes what the host does around it. On a CPU there is only the wall clock.
        after_round: called with the number of rounds done.

    Returns:
        Name to timing; a round begins one column later than the round before it.
    """
    if clock == "wall" and DEVICE.type == "cuda":
        warmup = max(warmup, RECORDED)
    for call in columns.values():
        for _ in range(warmup):
            call()
    samples: dict[str, Sample]
    if clock == "device" and DEVICE.type == "cuda":
        samples = cuda_timing.samples(columns)
    else:
        samples = {name: Sample(partial(_wall, call, calls)) for name, call in columns.items()}
    takers = {name: sample.take for name, sample in samples.items()}
    seconds = in_turns(takers, rounds, after_round)
    return {name: _timing(values, samples[name].how) for name, values in seconds.items()}


def _wall(call: Callable[[], object], calls: int) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize()
    return (time.perf_counter() - start) / calls


def _timing(seconds: list[float], how: str) -> Timing:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return Timing(middle, min(seconds), high - low, len(seconds), how)
