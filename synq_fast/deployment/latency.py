"""How long a file takes beside the float one, in the same runtime and the same minute."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from synq_fast.runtime.turns import in_turns

_ROUNDS = 9
_SECONDS = 0.15
"""Of each file in each round, at least."""


@dataclass(frozen=True)
class Latency:
    """Medians over rounds in which both files took turns; one image at a time."""

    milliseconds: float
    float_milliseconds: float
    speedup: float
    """Median of the rounds' ratios."""
    lowest: float
    highest: float
    threads: int
    instructions: str
    """What the processor offers for products of 8-bit integers."""

    def __str__(self) -> str:
        return (
            f"{self.milliseconds:.2f} ms an image, {self.speedup:.2f}x as fast as float32 "
            f"({self.lowest:.2f}-{self.highest:.2f}x; {self.float_milliseconds:.2f} ms; "
            f"{self.threads} threads, {self.instructions})"
        )


def latency(quantized: Callable[[], object], plain: Callable[[], object], threads: int) -> Latency:
    """Time two calls in turns."""
    calls = {"quantized": quantized, "plain": plain}
    takers = {name: partial(_time, call, _repeats(call)) for name, call in calls.items()}
    ours, theirs = in_turns(takers, _ROUNDS).values()
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    return Latency(
        1e3 * statistics.median(ours),
        1e3 * statistics.median(theirs),
        statistics.median(ratios),
        ratios[0],
        ratios[-1],
        threads,
        integer_instructions(),
    )


def integer_instructions() -> str:
    """The instructions of this processor that runtimes use for 8-bit integers."""
    capability = torch.backends.cpu.get_cpu_capability()
    known = {"AMX": "_is_amx_tile_supported", "VNNI": "_is_vnni_supported"}
    named = [n for n, check in known.items() if getattr(torch.cpu, check, lambda: False)()]
    return " with ".join([capability, *named[:1]]) if named else f"{capability} without VNNI"


def _repeats(call: Callable[[], object]) -> int:
    call()
    return max(1, round(_SECONDS / max(_time(call, 1), 1e-6)))


def _time(call: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats
