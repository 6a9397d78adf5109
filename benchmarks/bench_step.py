"""One SynQ fine-tuning step: the engine against the published step and the plain passes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import pytest

from . import breakdown, harness, switches
from .cases import RESNET20, Case, asked, load
from .engine import Parts, engine_trainer
from .plain_passes import plain_step
from .published import published_step, step_config
from .step_memory import PROGRAMS, step_peak
from .tables import Cell, Table, targets_table

CASES = [Case(RESNET20, 16), Case(RESNET20, 64)]
Compare = Callable[..., harness.Comparison]
Show = Callable[[Table], None]
Tell = Callable[[str], None]
Rounds = Callable[[int], int]

FIRST, LATE = "published, first 20 steps", "published, 1000th step"
LEAN, PLAIN = "same mathematics, 10F, channels_last", "plain passes, 9F"
# What the whole step must be at least, in times of each column: by device, model and batch.
TARGETS = {
    ("cpu", RESNET20, 16): {FIRST: 4.0, PLAIN: 1 / 1.25},
    ("cpu", RESNET20, 64): {FIRST: 4.0, PLAIN: 1 / 1.25},
    ("cpu", "resnet18", 16): {FIRST: 3.2, LEAN: 1.3, PLAIN: 1 / 1.25},
    ("cuda", "resnet18", 16): {FIRST: 10.0, PLAIN: 0.6},
    ("cuda", "resnet18", 256): {PLAIN: 0.8},
}
PAPERS_OVERHEAD = "the paper says that SynQ adds 17.81 % to the method it builds on"

only_engines_allocator = pytest.mark.parametrize(
    "allocator", harness.allocator_settings()[-1:], indirect=True
)


def bench_step(case: Case, precision: str, compare: Compare, show: Show) -> None:
    """Four bits, the data's preparation included; hooks do not accumulate while it is timed."""
    work = load(case)
    columns = {
        "ours": engine_trainer(work, precision=precision).advance,
        # Ten standing hooks are the mean of the first twenty steps.
        FIRST: published_step(work, step_config(work, standing_hooks=10)),
        LATE: published_step(work, step_config(work, standing_hooks=1000)),
        LEAN: published_step(work, step_config(work, lean=True, channels_last=True)),
        PLAIN: plain_step(work.teacher.module, work.images),
    }
    row = compare(
        work.titled(precision),
        columns,
        ours="ours",
        clock="wall",
        rounds=work.rounds(7, 3),
        warmup=1,
    )
    wanted = TARGETS.get((harness.DEVICE.type, case.model, len(work.labels)))
    if wanted is not None:
        show(targets_table(row, wanted))


@only_engines_allocator
def bench_breakdown(
    first_case: Case, precision: str, allocator: str, show: Show, rounds_of: Rounds
) -> None:
    """Where our step's time goes, and what it costs beyond the plain passes."""
    work = load(first_case)
    profiled = engine_trainer(work, record=False, precision=precision)
    show(
        breakdown.breakdown(
            "step",
            f"{work.titled(precision)}: where ours spends its time",
            engine_trainer(work, precision=precision).advance,
            plain_step(work.teacher.module, work.images),
            profiled.advance,
            partial(breakdown.step_scopes, profiled),
            rounds=rounds_of(work.rounds(9, 3)),
        )
    )


@only_engines_allocator
def bench_parts(first_case: Case, compare: Compare, show: Show) -> None:
    """What SynQ's three parts add to the method that it builds on."""
    work = load(first_case)
    variants = {
        "SynQ": Parts(),
        "without low-pass filter": Parts(low_pass=False),
        "without CAM alignment": Parts(cam=False),
        "without difficulty mask": Parts(difficulty_mask=False),
        "base method": Parts(low_pass=False, cam=False, difficulty_mask=False),
    }
    columns = {name: engine_trainer(work, parts).advance for name, parts in variants.items()}
    row = compare(
        f"{work.title}, parts of SynQ",
        columns,
        ours="SynQ",
        clock="wall",
        rounds=work.rounds(15, 5),
        warmup=work.rounds(2, 1),
    )
    # A disturbance of the machine only ever adds, and the differences are small.
    whole = row.timings["SynQ"].fastest
    rows: list[tuple[Cell, ...]] = []
    for part, without in (
        ("low-pass filter", "without low-pass filter"),
        ("CAM alignment", "without CAM alignment"),
        ("difficulty mask", "without difficulty mask"),
        ("all three", "base method"),
    ):
        less = row.timings[without].fastest
        rows.append((part, 1e3 * (whole - less), f"{100 * (whole / less - 1):+.1f}"))
    show(Table("step", row.case, ("part", "adds ms", "adds %"), rows, PAPERS_OVERHEAD))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def bench_memory(first_case: Case, show: Show, request: pytest.FixtureRequest) -> None:
    """Peak memory of a step beyond what stays between steps, each in a process of its own."""
    work = load(first_case)
    threads = request.config.getoption("--threads")
    peaks = {name: step_peak(name, first_case, threads) for name in PROGRAMS}
    lines = [(name, peak / 2**20, peak / peaks["published"]) for name, peak in peaks.items()]
    setting = harness.allocator_settings()[-1]
    show(
        Table(
            "step",
            f"{work.title}: peak memory of a step [allocator: {setting}]",
            ("step", "MiB", "of published"),
            lines,
        )
    )


@asked("switches")
@only_engines_allocator
def bench_switches(
    first_case: Case, allocator: str, show: Show, tell: Tell, rounds_of: Rounds
) -> None:
    """What each inefficiency of the published step costs."""
    work = load(first_case)
    lines = []
    for name in switches.step_switches():
        tell(name)
        variant = switches.step_variant(work, name)
        lines.append(switches.costs(variant, rounds=rounds_of(work.rounds(7, 3))))
    note = (
        f"leak_hooks: the hooks that step {switches.AGE} finds. Switches of the CAM object are on "
        f"in a lean step with the separate CAM pass"
    )
    show(switches.table("step", f"{work.title}: cost of each published inefficiency", lines, note))


AGED = 2000


@asked("aging")
@only_engines_allocator
def bench_aging(first_case: Case, compare: Compare, tell: Tell) -> None:
    """A step of a run that has done 2,000 against one of a new run, in turns."""
    work = load(first_case)
    aged, new = engine_trainer(work), engine_trainer(work)
    for step in range(AGED):
        if step % 500 == 0:
            tell(f"step {step}")
        aged.advance()
    old = f"ours, after {AGED:,} steps"
    compare(
        f"{work.title}, aged",
        {old: aged.advance, "ours, first steps": new.advance},
        ours=old,
        limits={old: ("ours, first steps", 1.05)},
        clock="wall",
        rounds=100,
    )


@asked("aging")
@only_engines_allocator
def bench_published_aging(first_case: Case, compare: Compare) -> None:
    """The published step with the hooks that 2,000 steps leave behind against its first ones."""
    work = load(first_case)
    late = f"published, after {AGED:,} steps"
    compare(
        f"{work.title}, published, aged",
        {
            late: published_step(work, step_config(work, standing_hooks=AGED)),
            FIRST: published_step(work, step_config(work, standing_hooks=10)),
        },
        ours=late,
        clock="wall",
        rounds=3,
        warmup=1,
    )
