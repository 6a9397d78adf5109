"""One synthesis iteration: the engine against the published loop and the plain passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from . import breakdown, harness, switches
from .cases import RESNET20, Case, asked, load
from .engine import EngineSynthesis
from .plain_passes import plain_synthesis
from .published import PublishedIterations, synthesis_config
from .tables import Table, targets_table

Compare = Callable[..., harness.Comparison]
Show = Callable[[Table], None]
Tell = Callable[[str], None]
Rounds = Callable[[int], int]

CASES = [Case(RESNET20, 256)]
ITERATIONS = 2
"""Of one timed call: with augmentation half of them have it, without chance deciding."""
PUBLISHED, PLAIN = "published", "plain passes, 2F"
TARGETS = {("cpu", "resnet18", 16): {PUBLISHED: 2.5}, ("cuda", "resnet18", 256): {PUBLISHED: 5.0}}

only_engines_allocator = pytest.mark.parametrize(
    "allocator", harness.allocator_settings()[-1:], indirect=True
)


def _call_each(call: Callable[[], object]) -> None:
    for _ in range(ITERATIONS):
        call()


def bench_synthesis(case: Case, precision: str, compare: Compare, show: Show) -> None:
    """Half of the iterations of large images are augmented, as published; small ones never are."""
    work = load(case)
    config = synthesis_config(work)
    columns: dict[str, Callable[[], object]] = {
        "ours": EngineSynthesis(
            work, augment=work.large, iterations=ITERATIONS, precision=precision
        ),
        PUBLISHED: PublishedIterations(work, config, ITERATIONS),
        "published, switches off": PublishedIterations(work, config.lean(), ITERATIONS),
        PLAIN: partial(_call_each, plain_synthesis(work.teacher.module, work.images)),
    }
    row = compare(
        work.titled(precision),
        columns,
        ours="ours",
        clock="wall",
        rounds=work.rounds(5, 3),
        warmup=1,
        works=ITERATIONS,
    )
    wanted = TARGETS.get((harness.DEVICE.type, case.model, len(work.labels)))
    if wanted is not None:
        show(targets_table(row, wanted))


@only_engines_allocator
def bench_synthesis_breakdown(
    first_case: Case, precision: str, allocator: str, show: Show, rounds_of: Rounds
) -> None:
    """Where our iteration's time goes, and what it costs beyond the plain passes."""
    work = load(first_case)
    ours, profiled = (
        EngineSynthesis(
            work, augment=work.large, iterations=ITERATIONS, record=record, precision=precision
        )
        for record in (True, False)
    )
    show(
        breakdown.breakdown(
            "synthesis",
            f"{work.titled(precision)}: where ours spends its time",
            ours,
            plain_synthesis(work.teacher.module, work.images),
            profiled,
            partial(breakdown.synthesis_scopes, profiled.synthesizers),
            rounds=rounds_of(work.rounds(5, 3)),
            works=ITERATIONS,
        )
    )


@asked("switches")
@only_engines_allocator
def bench_synthesis_switches(
    first_case: Case, allocator: str, show: Show, tell: Tell, rounds_of: Rounds
) -> None:
    """What each inefficiency of the published loop costs."""
    work = load(first_case)
    lines = []
    for name in switches.synthesis_switches(work):
        tell(name)
        variant = switches.synthesis_variant(work, name, ITERATIONS)
        lines.append(switches.costs(variant, rounds=rounds_of(work.rounds(5, 3)), works=ITERATIONS))
    title = f"{work.title}: cost of each published inefficiency"
    show(switches.table("synthesis", title, lines, "leak_hooks: with SynQ's layered statistics"))
