"""What each inefficiency of the published procedures costs, alone and among the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import harness
from .baselines.published_config import PublishedStepConfig
from .baselines.published_synthesis import PublishedSynthesisConfig
from .cases import Workload
from .published import PublishedIterations, published_step, step_config, synthesis_config
from .tables import Table

Cost = tuple[str, float, float, float, float]

AGE = 1000
"""The step whose leaked hooks are measured: the hooks' cost grows with each."""
# Without these another switch has nothing to act on.
_NEEDS = {
    "rebuild_cam": ("separate_cam_pass",),
    "leak_hooks": ("separate_cam_pass",),
    "check_hooks": ("separate_cam_pass",),
    "check_parameters": ("separate_cam_pass",),
    "zero_image_pass": ("separate_cam_pass", "rebuild_cam"),
}


@dataclass(frozen=True)
class Variant:
    """A switch and the four programs that tell its cost."""

    switch: str
    published: Callable[[], object]
    without: Callable[[], object]
    lean: Callable[[], object]
    alone: Callable[[], object]


def _configs(switch: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Changes that switch a step's cost on and off."""
    if switch == "leak_hooks":
        return {"standing_hooks": AGE}, {"standing_hooks": 0}
    return {switch: True}, {switch: False}


def step_variant(work: Workload, switch: str) -> Variant:
    """The published step with and without one switch, the lean one without and with it."""
    on, off = _configs(switch)
    base = step_config(work, lean=True, **dict.fromkeys(_NEEDS.get(switch, ()), True))
    published = step_config(work)
    return Variant(
        switch,
        published_step(work, replace(published, **on)),
        published_step(work, replace(published, **off)),
        published_step(work, replace(base, **off)),
        published_step(work, replace(base, **on)),
    )


def synthesis_variant(work: Workload, switch: str, iterations: int) -> Variant:
    """The same of the synthesis loop."""
    # Only the layered term's stage leaves hooks behind.
    layered = switch == "leak_hooks"
    config = replace(synthesis_config(work), leak_hooks=layered)
    lean = config.lean()
    on: dict[str, Any] = {switch: True}
    off: dict[str, Any] = {switch: False}

    def run(config: PublishedSynthesisConfig) -> Callable[[], object]:
        return PublishedIterations(work, config, iterations, layered=layered)

    return Variant(
        switch,
        run(config),
        run(replace(config, **off)),
        run(lean),
        run(replace(lean, **on)),
    )


def costs(variant: Variant, *, rounds: int, works: int = 1, warmup: int = 1) -> Cost:
    """One line of the table: the switch, ms and % saved when off, ms and % added when on alone.

    From the fastest of the rounds.
    """
    columns: Mapping[str, Callable[[], object]] = {
        "published": variant.published,
        "without": variant.without,
        "lean": variant.lean,
        "alone": variant.alone,
    }
    timings = harness.interleave(columns, rounds=rounds, warmup=warmup, clock="wall")
    # A disturbance of the machine only ever adds, and the differences are small.
    published, without, lean, alone = (timings[name].fastest / works for name in columns)
    saved, added = published - without, alone - lean
    return (
        variant.switch,
        1e3 * saved,
        100 * saved / published,
        1e3 * added,
        100 * added / lean,
    )


def table(suite: str, title: str, rows: Sequence[Cost], note: str) -> Table:
    """The lines as a table, the dearest first."""
    columns = ("switch", "off saves ms", "% of published", "on adds ms", "% of lean")
    dearest_first = sorted(rows, key=lambda row: row[1], reverse=True)
    return Table(suite, title, columns, dearest_first, note)


def step_switches() -> tuple[str, ...]:
    """Switches of the step."""
    return PublishedStepConfig.costs()


def synthesis_switches(work: Workload) -> tuple[str, ...]:
    """Switches of the loop that act on the workload."""
    names = PublishedSynthesisConfig.costs()
    return tuple(n for n in names if work.large or n != "augment_one_by_one")
