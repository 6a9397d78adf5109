"""What noise on synthetic images costs, with and without the low-pass filter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from synq_fast.bank.batches import Filter, filtered
from synq_fast.bank.images import ImageBank
from synq_fast.bank.source import BankSource
from synq_fast.fields import count, items
from synq_fast.reporting.figures.chart import Chart, Series
from synq_fast.reporting.images import difficulty
from synq_fast.reporting.study_page import StudySection
from synq_fast.reporting.tables import Column, Table, text
from synq_fast.reporting.tables import number as cell
from synq_fast.studies.noises import KINDS, noisy
from synq_fast.studies.study import Part, Spread, spread
from synq_fast.studies.workbench import Workbench, logits_of

CLEAN = "none"


@dataclass(frozen=True)
class NoiseRow:
    """One short training on noisy images."""

    kind: str
    """Of noise; ``none``: the images as they are."""
    strength: float
    """Root mean square in standard deviations of the images."""
    cutoff: float | None
    """Of the filter in cycles per image; None: no filter."""
    seed: int
    agreement: float
    """Percent of the images whose label is the float network's strongest class."""
    difficulty: float
    """Mean of 1 - p(label) by the float network."""
    calibrated: float
    """Top-1 in percent after calibration on these images."""
    trained: float
    """After the short training."""


@dataclass(frozen=True)
class Noise:
    """Calibration and a short distillation, by the logits and labels alone, on noisy images."""

    name: ClassVar[str] = "noise"
    question: ClassVar[str] = (
        "What does noise on the synthetic images cost, and how much of it does the low-pass filter "
        "win back?"
    )
    row: ClassVar[type[Any]] = NoiseRow
    needs: ClassVar[str] = "labels"

    kinds: tuple[str, ...] = items(KINDS, "of noise", options=KINDS)
    strengths: tuple[float, ...] = items(
        (0.5, 1.0), "of the noise", low=0.01, high=100, unit="standard deviations of the images"
    )
    cutoffs: tuple[float, ...] = items(
        (8.0, 20.0), "of the Gaussian filter, beside none", low=1, high=1e6, unit="cycles per image"
    )
    steps: int = count(40, "of the training")

    def parts(self, bench: Workbench) -> Iterator[Part]:
        """Every kind and strength behind every filter, from every seed."""
        cutoffs: list[float | None] = [None, *self.cutoffs]
        noises = [(CLEAN, 0.0), *((k, s) for k in self.kinds for s in self.strengths)]
        for seed in bench.seeds:
            for kind, strength in noises:
                for cutoff in cutoffs:
                    behind = "no filter" if cutoff is None else f"cut-off {cutoff:g}"
                    key = f"{kind} {strength:g}, {behind}, seed {seed}"
                    make = partial(self._trained, bench, kind, strength, cutoff, seed)
                    yield Part(key, make, ("steps",))

    def _trained(
        self, bench: Workbench, kind: str, strength: float, cutoff: float | None, seed: int
    ) -> list[NoiseRow]:
        recipe = bench.varied(
            {
                "stages": ["synthesis", "calibration", "finetune"],
                "finetune.steps": self.steps,
                "finetune.perturbation.weight": 0.0,
                "finetune.features.weight": 0.0,
                "finetune.cam.weight": 0.0,
            }
        )
        run, bank = bench.run(seed, recipe), bench.bank(seed)
        images = bank.images
        if kind != CLEAN:
            images = noisy(images, kind, strength, bench.teacher.valid_range(), seed)
        filter = Filter("none") if cutoff is None else Filter("gaussian", cutoff)
        seen = filtered(images, filter)
        logits = logits_of(run.graph, seen)
        same = (logits.argmax(1) == bank.labels).double().mean()
        source = BankSource(ImageBank(images, bank.labels), filter, seed)
        top1 = {stage: bench.top1(student) for stage, student in bench.stages(run, source)}
        hard = difficulty(logits, bank.labels).mean()
        return [
            NoiseRow(
                kind,
                strength,
                cutoff,
                seed,
                100 * float(same),
                float(hard),
                top1["calibration"],
                top1["finetune"],
            )
        ]

    def findings(self, rows: Sequence[NoiseRow]) -> list[str]:
        """The clean images, then each kind at its largest strength."""
        if not rows:
            return []
        said = [f"Without noise, top-1 after the short training is {_by_cutoff(rows, CLEAN, 0.0)}."]
        for kind in self.kinds:
            top = max(self.strengths)
            said.append(
                f"Noise {kind} of strength {top:g}: {_by_cutoff(rows, kind, top)}; the float "
                f"network's agreement with the labels in percent: "
                f"{_by_cutoff(rows, kind, top, 'agreement')}."
            )
        return said

    def sections(self, rows: Sequence[NoiseRow], bench: Workbench) -> list[StudySection]:
        """Accuracy over strength for each kind; the float network's agreement; everything."""
        cutoffs = list(dict.fromkeys(row.cutoff for row in rows))
        charts = []
        for kind in self.kinds:
            strengths = [0.0, *self.strengths]
            series = []
            for cutoff in cutoffs:
                found = [_of(rows, kind if s else CLEAN, s, cutoff) for s in strengths]
                series.append(
                    Series(
                        _behind(cutoff),
                        strengths,
                        [each.mean for each in found],
                        [each.low for each in found],
                        [each.high for each in found],
                    )
                )
            top = max(self.strengths)
            label = (
                f"Top-1 over the strength of {kind} noise; at {top:g}: "
                f"{_by_cutoff(rows, kind, top)}"
            )
            charts.append(
                Chart(f"Noise: {kind}", label, "strength, standard deviations", "top-1, %", series)
            )
        top = max(self.strengths)
        series = [
            Series(
                _behind(cutoff),
                [_of(rows, kind, top, cutoff, "agreement").mean for kind in self.kinds],
                list(range(len(self.kinds))),
            )
            for cutoff in cutoffs
        ]
        charts.append(
            Chart(
                f"Float network, strength {top:g}",
                "Percent of the noisy images whose label the float network names",
                "% that agree with their label",
                "",
                series,
                list(self.kinds),
            )
        )
        said = (
            f"Calibration on the noisy images and {self.steps} steps of distillation on them (KL "
            f"divergence and cross entropy; no perturbed pass, features or maps), filtered as in "
            f"training: after they are cropped. Mean and standard deviation over the seeds; at "
            f"strength 0 are the images as they are. Top-1 is counted on "
            f"{0 if bench.data is None else len(bench.data)} labelled images."
        )
        return [StudySection("Accuracy", said, charts, _table(rows))]


def _behind(cutoff: float | None) -> str:
    return "no filter" if cutoff is None else f"cut-off {cutoff:g}"


def _of(
    rows: Sequence[NoiseRow],
    kind: str,
    strength: float,
    cutoff: float | None,
    field: str = "trained",
) -> Spread:
    return spread(
        getattr(row, field)
        for row in rows
        if (row.kind, row.strength, row.cutoff) == (kind, strength, cutoff)
    )


def _by_cutoff(rows: Sequence[NoiseRow], kind: str, strength: float, field: str = "trained") -> str:
    cutoffs = dict.fromkeys(row.cutoff for row in rows)
    return ", ".join(f"{_of(rows, kind, strength, c, field)} ({_behind(c)})" for c in cutoffs)


def _table(rows: Sequence[NoiseRow]) -> Table:
    columns = (
        Column("noise", numeric=False),
        Column("strength"),
        Column("filter", numeric=False),
        Column("seed"),
        Column("agreement, %"),
        Column("difficulty"),
        Column("calibrated, %"),
        Column("trained, %"),
    )
    lines = [
        (
            text(row.kind),
            cell(row.strength),
            text(_behind(row.cutoff)),
            cell(row.seed),
            cell(row.agreement, "{:.1f}"),
            cell(row.difficulty, "{:.3f}"),
            cell(row.calibrated, "{:.2f}"),
            cell(row.trained, "{:.2f}"),
        )
        for row in rows
    ]
    return Table("Accuracy", columns, lines)
