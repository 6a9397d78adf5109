"""A GPU's own time of a piece of work: CUDA graphs on rotated inputs, or events around a call.

Launching a small kernel takes longer than running it, and inputs that were just read lie in the L2
cache. So many calls are captured in one CUDA graph, which launches them back to back, and they
take turns on copies of their inputs that together do not fit the cache. What cannot be captured,
because it waits for the device or allocates pinned memory, is timed call by call with events.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from synq_fast.runtime.capture import capture, warm_up

# Short enough for many rounds, long against the clock's half microsecond.
GRAPH_SECONDS = 1e-3
MOST_CALLS = 500
MOST_COPIES = 32

Call = Callable[[], object]


@dataclass(frozen=True)
class Sample:
    """How one timing of a column is taken."""

    take: Callable[[], float]
    """Runs the work; returns the seconds per call."""
    how: str = "wall clock"


class Rotation:
    """The same work on several inputs; each call takes the next one."""

    def __init__(self, calls: Sequence[Call]) -> None:
        """Take turns among ``calls``, at least one."""
        self.calls = list(calls)
        self._turns = itertools.cycle(self.calls)

    def __call__(self) -> object:
        """Run the next call and return its result."""
        return next(self._turns)()


def rotate(
    function: Callable[..., Any], arguments: Sequence[Any], options: Mapping[str, Any]
) -> Callable[[], Any]:
    """``function`` of these arguments and, while these are small, of copies of them in turn."""
    tensors = [v for v in (*arguments, *options.values()) if isinstance(v, torch.Tensor)]
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    count = copies(sum(t.nbytes for t in tensors), cache)
    calls = [partial(function, *arguments, **options)]
    for _ in range(count - 1):
        others = {name: _copy(value) for name, value in options.items()}
        calls.append(partial(function, *map(_copy, arguments), **others))
    return calls[0] if count == 1 else Rotation(calls)


def copies(nbytes: int, cache: int) -> int:
    """How many inputs of ``nbytes`` bytes it takes to push each other out of a cache."""
    if nbytes == 0:
        return 1
    return max(1, min(MOST_COPIES, math.ceil(3 * cache / nbytes)))


def _copy(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def samples(columns: Mapping[str, Call]) -> dict[str, Sample]:
    """How each column is timed; all columns of a row rotate among equally many inputs."""
    inputs = min(len(_calls(call)) for call in columns.values())
    return {name: _sample(_calls(call)[:inputs]) for name, call in columns.items()}


def _calls(call: Call) -> list[Call]:
    return call.calls if isinstance(call, Rotation) else [call]


def _sample(calls: list[Call]) -> Sample:
    inputs = f"{len(calls)} input{'s' if len(calls) > 1 else ''}"
    single = _events(Rotation(calls))
    estimate = min(single() for _ in range(3))
    count = graph_calls(estimate, len(calls))
    try:
        replay = captured(calls, count)
    except RuntimeError as error:
        torch.cuda.synchronize()
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return Sample(single, f"events around one call, {inputs}; not captured: {reason}")
    timed = _events(replay)
    return Sample(lambda: timed() / count, f"CUDA graph of {count} calls, {inputs}")


def graph_calls(seconds: float, inputs: int) -> int:
    """How many calls of ``seconds`` make a graph that is long enough and uses every input."""
    wanted = min(MOST_CALLS, math.ceil(GRAPH_SECONDS / max(seconds, 1e-7)))
    return inputs * max(1, round(wanted / inputs))


def captured(calls: Sequence[Call], count: int) -> Call:
    """Captures ``count`` calls, in turns, in one CUDA graph; returns what replays it.

    Raises:
        RuntimeError: The work cannot be captured.
    """
    device = torch.device("cuda", torch.cuda.current_device())

    def all_calls() -> None:
        for call in calls:
            call()

    # Libraries and the allocator set themselves up in a first run, which must not be captured.
    warm_up(all_calls, device)
    warm_up(all_calls, device, must_not_wait=True)
    torch.cuda.synchronize()

    def in_turns() -> None:
        for index in range(count):
            calls[index % len(calls)]()

    graph, _ = capture(in_turns, device)
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def _events(call: Call) -> Callable[[], float]:
    def timed() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return timed
