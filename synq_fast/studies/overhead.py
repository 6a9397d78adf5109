"""What the parts of SynQ add in time to the method that they are added to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch

from synq_fast.bank.images import ImageBank
from synq_fast.bank.source import BankSource
from synq_fast.engine.run import Run
from synq_fast.engine.stages import STAGES, Made
from synq_fast.errors import ArgumentError, RecipeError
from synq_fast.fields import choice, count, number
from synq_fast.finetune.losses import Cam, Distillation
from synq_fast.recipes import Recipe
from synq_fast.reporting.figures.chart import Chart, Series
from synq_fast.reporting.study_page import StudySection
from synq_fast.reporting.tables import Column, Table, text
from synq_fast.reporting.tables import number as cell
from synq_fast.runtime.replay import WARM_UP
from synq_fast.runtime.seeding import generator_for, normal_images
from synq_fast.runtime.turns import in_turns
from synq_fast.studies.study import Part
from synq_fast.studies.workbench import Workbench

STEP, ITERATION = "training step", "synthesis iteration"
BASE, ALL = "base method", "all three"
OFF: Mapping[str, Mapping[str, Any]] = {
    "low-pass filter": {"filter.kind": "none"},
    "CAM alignment": {"finetune.cam.weight": 0.0},
    "soft labels": {"finetune.distillation.soft_labels_only_if_difficult": False},
}
"""The parts of SynQ, and the recipe values that switch each off."""
_FOREVER = 10**8


@dataclass(frozen=True)
class OverheadRow:
    """One program, timed in turns with the others of its kind of work."""

    work: str
    """``training step`` or ``synthesis iteration``."""
    case: str
    milliseconds: float
    """Median over the rounds."""
    adds: float
    """Percent of the base method: median over the rounds of the ratio within a round."""
    low: float
    """Lower quartile of that."""
    high: float
    fastest: float
    """The same from the fastest round of each, which disturbances of the machine spare."""
    rounds: int
    batch: int
    """Images in it."""


@dataclass(frozen=True)
class Overhead:
    """Steps with parts switched off through the recipe, in turns within one process."""

    name: ClassVar[str] = "overhead"
    question: ClassVar[str] = (
        "What do the low-pass filter, the alignment of class activation maps and the soft labels "
        "for difficult samples add in time to the method that they are added to?"
    )
    row: ClassVar[type[Any]] = OverheadRow
    needs: ClassVar[str] = ""

    rounds: int = count(25, "times that every program is timed", 4)
    batch: int = number(
        0, "images in a step; 0: as many as the recipe says", 1, 2**16, or_zero=True
    )

    clock: str = choice(
        "wall",
        "that times: the wall's, or on a CPU the time that the process has spent computing, which "
        "other programs on the machine disturb less",
        "wall",
        "process",
    )

    def parts(self, bench: Workbench) -> Iterator[Part]:
        """Training steps, then iterations of synthesis."""
        _check(bench.recipe)
        if self.clock == "process" and bench.device.type != "cpu":
            raise ArgumentError(
                f"clock = process does not see what {bench.device} does; take clock = wall"
            )
        yield Part(STEP, partial(self._steps, bench))
        if "synthesis" in bench.recipe.stages:
            yield Part(ITERATION, partial(self._iterations, bench))

    def _steps(self, bench: Workbench) -> list[OverheadRow]:
        off = {part: dict(values) for part, values in OFF.items()}
        variants = {BASE: list(OFF)}
        variants |= {part: [other for other in OFF if other != part] for part in OFF}
        variants |= {ALL: []}
        calls: dict[str, Callable[[], object]] = {}
        size = self.batch or bench.recipe.finetune.batch_size
        for name, without in variants.items():
            values = {key: value for part in without for key, value in off[part].items()}
            calls[name] = _step(bench, bench.varied(values), size)
        times = self._timed(calls, bench.device)
        return [self._row(STEP, name, times[name], times[BASE], size) for name in times]

    def _iterations(self, bench: Workbench) -> list[OverheadRow]:
        size = self.batch or bench.recipe.synthesis.batch_size
        # Chance would decide which of the rounds are augmented.
        still = replace(bench.recipe.synthesis, augment_probability=0.0, steps=_FOREVER)
        run = Run(
            bench.teacher,
            replace(bench.recipe, synthesis=still),
            bench.bits,
            bench.device,
            seed=bench.seeds[0],
        )
        loop, _ = run.synthesizer().optimization(0, size)
        source = BankSource(_images(bench, size), bench.recipe.filter, bench.seeds[0])
        batches = source.batches(size)
        inputs = batches.inputs(0)
        calls: dict[str, Callable[[], object]] = {
            BASE: loop.advance,
            "low-pass filter": lambda: batches.made(*inputs),
        }
        times = self._timed(calls, bench.device)
        base = times[BASE]
        # The images are filtered once, when all iterations are done.
        once = [t / bench.recipe.synthesis.steps for t in times["low-pass filter"]]
        added = [a + b for a, b in zip(base, once, strict=True)]
        return [
            self._row(ITERATION, BASE, base, base, size),
            self._row(ITERATION, "low-pass filter, once", added, base, size),
        ]

    def _timed(
        self, calls: Mapping[str, Callable[[], object]], device: torch.device
    ) -> dict[str, list[float]]:
        for call in calls.values():
            for _ in range(WARM_UP + 2 if device.type == "cuda" else 2):
                call()
        takers = {name: partial(self._seconds, call, device) for name, call in calls.items()}
        return in_turns(takers, self.rounds)

    def _seconds(self, call: Callable[[], object], device: torch.device) -> float:
        clock = time.process_time if self.clock == "process" else time.perf_counter
        _wait_for(device)
        started = clock()
        call()
        _wait_for(device)
        return clock() - started

    def _row(
        self, work: str, case: str, times: list[float], base: list[float], size: int
    ) -> OverheadRow:
        ratios = [100 * (own / other - 1) for own, other in zip(times, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        return OverheadRow(
            work,
            case,
            round(1e3 * statistics.median(times), 4),
            round(middle, 3),
            round(low, 3),
            round(high, 3),
            round(100 * (min(times) / min(base) - 1), 3),
            len(times),
            size,
        )

    def findings(self, rows: Sequence[OverheadRow]) -> list[str]:
        """What each part adds."""
        said = []
        for row in rows:
            if row.case == BASE:
                said.append(
                    f"A {row.work} of the base method with {row.batch} images takes "
                    f"{row.milliseconds:.4g} ms (median of {row.rounds})."
                )
            else:
                said.append(
                    f"Added to a {row.work}, {row.case}: {row.adds:+.2f} % (quartiles "
                    f"{row.low:+.2f} to {row.high:+.2f}; by the fastest rounds "
                    f"{row.fastest:+.2f})."
                )
        return said

    def sections(self, rows: Sequence[OverheadRow], bench: Workbench) -> list[StudySection]:
        """A chart of the step's parts, and a table of everything."""
        added = [row for row in rows if row.work == STEP and row.case != BASE]
        series = Series(
            "",
            [row.adds for row in added],
            list(range(len(added))),
            [row.low for row in added],
            [row.high for row in added],
        )
        label = f"What parts add to a {STEP}, in percent: " + ", ".join(
            f"{row.case} {row.adds:.2f}" for row in added
        )
        names = [row.case for row in added]
        axis = "% of the base method"
        chart = Chart(f"Added to a {STEP}", label, axis, "", [series], names, (0.0, "base"))
        columns = (
            Column("work", numeric=False),
            Column("program", numeric=False),
            Column("ms", note="median"),
            Column("adds, %", note="median of the rounds' ratios"),
            Column("lower quartile"),
            Column("upper quartile"),
            Column("by the fastest, %"),
            Column("rounds"),
            Column("images"),
        )
        lines = [
            (
                text(row.work),
                text(row.case),
                cell(row.milliseconds, "{:.4g}"),
                *(cell(v, "{:+.2f}") for v in (row.adds, row.low, row.high, row.fastest)),
                cell(row.rounds),
                cell(row.batch),
            )
            for row in rows
        ]
        said = (
            "Medians over the rounds of the ratio to the base method within a round, with "
            "quartiles. The base method is the recipe with all three parts switched off; each row "
            "has one of them on, the last all. Synthesis knows none of the three: images are "
            "filtered once when they are done, which is shared among the iterations here. (In "
            "training, batches are filtered after they are cropped: that is in the step.)"
        )
        return [StudySection("Time", said, [chart], Table("Time", columns, lines))]


def _check(recipe: Recipe) -> None:
    """Refuse a recipe that lacks what is to be measured.

    Raises:
        RecipeError: with what it lacks.
    """
    distillation, cam = recipe.finetune.loss(Distillation), recipe.finetune.loss(Cam)
    there = {
        "low-pass filter (filter.kind)": recipe.filter.kind != "none",
        "CAM alignment (finetune.cam.weight)": cam is not None and cam.weight > 0,
        "soft labels for difficult samples (finetune.distillation)": distillation is not None
        and distillation.label_weight > 0
        and distillation.soft_labels_only_if_difficult,
    }
    lacks = [part for part, found in there.items() if not found]
    if lacks or "finetune" not in recipe.stages:
        what = ", ".join(lacks) or "stage finetune"
        raise RecipeError(
            f"recipe {recipe.name} has no {what}, whose time is to be measured; take SynQ's, such "
            f"as synq-cifar"
        )


def _images(bench: Workbench, size: int) -> ImageBank:
    generator = generator_for(bench.seeds[0], "overhead")
    images = normal_images(size, bench.teacher.input_shape, generator).to(bench.device)
    labels = torch.arange(size, device=bench.device) % bench.teacher.num_classes
    return ImageBank(images.contiguous(memory_format=torch.channels_last), labels)


def _step(bench: Workbench, recipe: Recipe, size: int) -> Callable[[], object]:
    """One step of training as the engine does it, its data included."""
    # A rate that moves nothing keeps the work of all rounds equal.
    finetune = replace(recipe.finetune, batch_size=size, steps=_FOREVER, learning_rate=1e-12)
    quantization = replace(recipe.quantization, calibration_batches=1, calibration_batch_size=size)
    changed = replace(recipe, finetune=finetune, quantization=quantization)
    run = Run(bench.teacher, changed, bench.bits, bench.device, seed=bench.seeds[0])
    source = BankSource(_images(bench, size), recipe.filter, bench.seeds[0])
    made = STAGES["calibration"](run, Made(run.build_student(), source))
    return run.training(made.student, source).advance


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
