"""Where the time of a step goes: profiled operations sorted into the parts of the method.

Every operation's own time is counted once, so the parts add up to the whole. An operation belongs
to the nearest thing around it that tells: a kernel of ours, a scope that `step_scopes` has put
around a call, or the autograd node that runs it. An autograd node belongs to the part of the
operation that recorded it, and for a network's own operations that part is "backward".
"""

from __future__ import annotations

import re
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from synq_fast.optimize.loop import Loop
from synq_fast.synthesis.synthesizer import Synthesizer

from . import harness
from .rows import seconds
from .tables import Table

TEACHER, STUDENT, BACKWARD = "teacher forward", "student forward", "backward"
FILTER, CAM, QUANTIZERS = "filter", "CAM", "quantizers"
LOSSES, OPTIMIZER, DATA, OTHER = "losses", "optimizer", "data", "other"
PARTS = (
    TEACHER,
    STUDENT,
    BACKWARD,
    FILTER,
    CAM,
    QUANTIZERS,
    LOSSES,
    OPTIMIZER,
    DATA,
    OTHER,
)
NETWORKS = (TEACHER, STUDENT, BACKWARD)

_SCOPE, _ROOT = "part: ", "measured steps"
_NODE = "autograd::engine::evaluate_function: "
# Decide wherever they are called; the first match counts.
_KERNELS = [
    (re.compile(pattern), part)
    for pattern, part in (
        (r"synq_fast::low_pass", FILTER),
        (r"synq_fast::(\w*_)?cam", CAM),
        (r"synq_fast::\w*(quantize|range)|_GainedRange", QUANTIZERS),
        (r"synq_fast::", LOSSES),
        (r"Optimizer\.", OPTIMIZER),
        (r"aten::(grid_sampler|affine_grid|randperm|randn|rand$|normal_|uniform_)", DATA),
    )
]
# Networks use them too, so they decide outside of every scope only.
_LOSSES = re.compile(
    r"aten::(\w*softmax|cross_entropy_loss|nll_loss|mse_loss|gather|expm1|pow$|linalg_vector_norm)"
)


def parts_of(events: Sequence[FunctionEvent]) -> list[str]:
    """The part of `PARTS` that each event's own time belongs to."""
    recorded_by: dict[int, FunctionEvent] = {}
    for event in sorted(events, key=lambda e: e.time_range.start):
        # Operations that record nothing share the number of the next that does, so the last counts.
        if event.sequence_nr >= 0 and not any(e.name.startswith(_NODE) for e in _outwards(event)):
            recorded_by[event.sequence_nr] = event

    def part(event: FunctionEvent) -> str:
        node = None
        for around in _outwards(event):
            for pattern, name in _KERNELS:
                if pattern.match(around.name):
                    return name
            if around.name.startswith(_SCOPE):
                return around.name.removeprefix(_SCOPE)
            if node is None and around.name.startswith(_NODE):
                node = around
        if node is not None:
            recorder = recorded_by.get(node.sequence_nr)
            name = part(recorder) if recorder is not None else BACKWARD
            return BACKWARD if name in NETWORKS else name
        return LOSSES if any(_LOSSES.match(e.name) for e in _outwards(event)) else OTHER

    return [part(event) for event in events]


def _outwards(event: FunctionEvent) -> Iterator[FunctionEvent]:
    around: FunctionEvent | None = event
    while around is not None:
        yield around
        around = around.cpu_parent


class _Scoped:
    """What it stands for, with its calls and those of some methods counted as a part."""

    def __init__(self, inner: Any, part: str, *methods: str) -> None:
        self._inner, self._part = inner, part
        for name in methods:
            setattr(self, name, _Scoped(getattr(inner, name), part))

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        with record_function(_SCOPE + self._part):
            return self._inner(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@contextmanager
def step_scopes(loop: Loop) -> Iterator[None]:
    """Inside the block the profile of training tells networks, losses and data from each other."""
    training: Any = loop.iteration
    step: Any = training.step
    kept = (training.batches, step.teacher, step.student, step.taps_of)
    training.batches = _Scoped(training.batches, DATA, "inputs", "made")
    step.teacher, step.student = _Scoped(step.teacher, TEACHER), _Scoped(step.student, STUDENT)
    step.taps_of = {
        _Scoped(loss, CAM if any(tap.kind == "map" for tap in taps) else LOSSES): taps
        for loss, taps in step.taps_of.items()
    }
    try:
        yield
    finally:
        training.batches, step.teacher, step.student, step.taps_of = kept


@contextmanager
def synthesis_scopes(synthesizers: Sequence[Synthesizer]) -> Iterator[None]:
    """Inside the block the synthesizers' profiles tell the teacher from the rest."""
    loose: list[Any] = list(synthesizers)
    kept = [synthesizer.teacher for synthesizer in loose]
    for synthesizer in loose:
        synthesizer.teacher = _Scoped(synthesizer.teacher, TEACHER)
    try:
        yield
    finally:
        for synthesizer, teacher in zip(loose, kept, strict=True):
            synthesizer.teacher = teacher


def shares(call: Callable[[], object], calls: int = 3) -> dict[str, float]:
    """The share of each part in the time of a call; they add up to 1.

    On a CPU the time is that of the operations and of the host between them, on a GPU that of
    the kernels.
    """
    activities = [ProfilerActivity.CPU]
    on_gpu = harness.DEVICE.type == "cuda"
    if on_gpu:
        activities.append(ProfilerActivity.CUDA)
    with warnings.catch_warnings():
        # It warns of cycles, of which there is one.
        warnings.simplefilter("ignore")
        harness.synchronize()
        with profile(activities=activities) as profiler:
            with record_function(_ROOT):
                for _ in range(calls):
                    call()
            harness.synchronize()
        events = profiler.events() or []
    times = dict.fromkeys(PARTS, 0.0)
    for event, part in zip(events, parts_of(events), strict=True):
        times[part] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    total = sum(times.values())
    if not on_gpu:
        total = next(event.cpu_time_total for event in events if event.name == _ROOT)
    return {part: spent / total for part, spent in times.items()}


def breakdown(
    suite: str,
    title: str,
    call: Callable[[], object],
    plain: Callable[[], object],
    profiled: Callable[[], object],
    scopes: Callable[[], Any],
    *,
    rounds: int,
    works: int = 1,
) -> Table:
    """Measure a step beside the plain passes, profile it, and sort its time.

    Args:
        suite: name of the suite.
        title: what is measured.
        call: the step, or several iterations in a row.
        plain: the plain network passes of one step or iteration.
        profiled: the same work as ``call``, not replayed from a recording.
        scopes: context that names the parts while it is profiled.
        rounds: of the comparison with the plain passes.
        works: iterations that one call does.
    """
    timings = harness.interleave({"ours": call, "plain": plain}, rounds=rounds, clock="wall")
    whole, floor = timings["ours"].median / works, timings["plain"].median
    with scopes():
        found = [shares(profiled) for _ in range(3)]
    share = {part: statistics.fmean(one[part] for one in found) for part in PARTS}
    present = [part for part in PARTS if share[part] > 0]
    lines = [(part, share[part]) for part in present]
    lines.append(("all network passes", sum(share[part] for part in NETWORKS)))
    lines.append(("all", sum(share.values())))
    rows = [(name, 1e3 * s * whole, 100 * s, s * whole / floor) for name, s in lines]
    note = (
        f"the plain passes alone take {seconds(floor)}; with everything else it is "
        f"{100 * (whole / floor - 1):+.0f} %"
    )
    return Table(suite, title, ("part", "ms", "%", "of plain passes"), rows, note)
