"""How the difficulty of samples and the float network's errors go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from synq_fast.bank.batches import filtered
from synq_fast.fields import count, items, number
from synq_fast.finetune.losses import Distillation
from synq_fast.reporting.figures.chart import Chart, Series
from synq_fast.reporting.images import difficulty
from synq_fast.reporting.study_page import StudySection
from synq_fast.reporting.tables import Column, Table, text
from synq_fast.reporting.tables import number as cell
from synq_fast.studies.study import Part
from synq_fast.studies.workbench import Workbench, logits_of

LABEL, PREDICTION, THRESHOLD = "label", "prediction", "threshold"
WHOLE, BATCHES = "synthetic", "training batches"


@dataclass(frozen=True)
class LabelRow:
    """Samples whose difficulty lies between two ends."""

    images: str
    """``synthetic``: filtered, whole; ``training batches``: cropped as well; or what the labelled
    ones are called."""
    seed: int | None
    by: str
    """``label``: difficulty is 1 - p(label). ``prediction``: 1 - p(strongest class), which needs no
    label. ``threshold``: by the label, on one side of a threshold."""
    low: float
    high: float
    """Not included, but for 1."""
    count: int
    difficulty: float | None
    """Mean of the samples; None where there are none."""
    errors: float | None
    """Share of the samples whose label is not the float network's strongest class."""


@dataclass(frozen=True)
class Labels:
    """Difficulty in bins against errors, of training's samples and of labelled images."""

    name: ClassVar[str] = "labels"
    question: ClassVar[str] = (
        "Is the float network wrong about difficult samples, so that their labels should not count?"
    )
    row: ClassVar[type[Any]] = LabelRow
    needs: ClassVar[str] = ""

    bins: int = number(10, "of the difficulty, of equal width", 2, 1000)
    samples: int = count(4096, "of training's batches that are judged, for each seed")
    thresholds: tuple[float, ...] = items(
        (0.5, 0.55, 0.6, 0.65, 0.7), "of the difficulty, beside the recipe's", low=0, high=1
    )

    def parts(self, bench: Workbench) -> Iterator[Part]:
        """The images of each seed and the batches of its training, then the labelled images."""
        for seed in bench.seeds:
            yield Part(f"synthetic images, seed {seed}", partial(self._synthetic, bench, seed))
        if bench.data is not None:
            yield Part(f"labelled images, {bench.data.name}", partial(self._labelled, bench))

    def _synthetic(self, bench: Workbench, seed: int) -> list[LabelRow]:
        recipe, graph = bench.recipe.finetune, bench.run(seed).graph
        bank = bench.bank(seed)
        whole = logits_of(graph, filtered(bank.images, bench.recipe.filter))
        rows = self._rows(bench, WHOLE, seed, whole, bank.labels)
        logits, labels = [], []
        with closing(bench.source(seed).batches(recipe.batch_size, recipe.crop_scale)) as batches:
            for step in range(-(-self.samples // recipe.batch_size)):
                images, own = batches(step)
                logits.append(logits_of(graph, images))
                labels.append(own)
        return rows + self._rows(bench, BATCHES, seed, torch.cat(logits), torch.cat(labels))

    def _labelled(self, bench: Workbench) -> list[LabelRow]:
        assert bench.data is not None
        graph = bench.run(bench.seeds[0]).graph
        found = [
            (logits_of(graph, images).cpu(), labels)
            for images, labels in bench.data.batches(256, device=bench.device)
        ]
        logits, labels = (torch.cat(each) for each in zip(*found, strict=True))
        return self._rows(bench, bench.data.name, None, logits, labels)

    def _rows(
        self, bench: Workbench, images: str, seed: int | None, logits: Tensor, labels: Tensor
    ) -> list[LabelRow]:
        wrong = logits.argmax(1) != labels
        hard = difficulty(logits, labels)
        unsure = difficulty(logits, logits.argmax(1))
        rows = []
        for by, values in ((LABEL, hard), (PREDICTION, unsure)):
            place = (values * self.bins).long().clamp(0, self.bins - 1)
            for bin in range(self.bins):
                low, high = bin / self.bins, (bin + 1) / self.bins
                rows.append(_row(images, seed, by, low, high, values, wrong, place == bin))
        own = threshold_of(bench)
        for end in sorted({*self.thresholds, *([] if own is None else [own])}):
            below = hard < end
            rows.append(_row(images, seed, THRESHOLD, 0.0, end, hard, wrong, below))
            rows.append(_row(images, seed, THRESHOLD, end, 1.0, hard, wrong, ~below))
        return rows

    def findings(self, rows: Sequence[LabelRow]) -> list[str]:
        """Errors on both sides of each threshold, and how well probabilities tell errors."""
        said = []
        for images in dict.fromkeys(row.images for row in rows):
            own = [row for row in rows if row.images == images]
            ends = [r.low for r in own if r.by == THRESHOLD and r.high == 1]
            said.append(
                f"{images}: "
                + "; ".join(_sides(own, threshold) for threshold in dict.fromkeys(ends))
                + "."
            )
            said.append(
                f"{images}: expected calibration error of the float network's probabilities "
                f"{100 * calibration_error(own):.1f} points."
            )
        return said

    def sections(self, rows: Sequence[LabelRow], bench: Workbench) -> list[StudySection]:
        """Errors and samples over the difficulty, and the calibration curve."""
        names = list(dict.fromkeys(row.images for row in rows))
        own = threshold_of(bench)
        mark = None if own is None else (own, f"threshold {own:g}")
        charts = []
        for title, by, axis in (
            ("Errors over difficulty", LABEL, "1 - p(label)"),
            ("Calibration", PREDICTION, "1 - p(strongest class)"),
        ):
            series = [self._errors(rows, name, by) for name in names]
            if by == PREDICTION:
                series.append(Series("calibrated", [0, 1], [0, 100], dashed=True))
            label = f"Share of wrong images in bins of {axis}, of {', '.join(names)}"
            charts.append(Chart(title, label, axis, "errors, %", series, (), mark))
        shares = [self._shares(rows, name) for name in names]
        label = f"Share of the samples in each bin of difficulty, of {', '.join(names)}"
        charts.append(Chart("Samples", label, "1 - p(label)", "samples, %", shares, (), mark))
        said = (
            "Difficulty is one minus the float network's probability of the label; an error, that "
            "its strongest class is another. Below one half there can be none: that class has more "
            "than half. The calibration curve asks the same without labels: on the dashed line the "
            "network is wrong as often as it says. Synthetic images are judged whole and as "
            "batches of training, which are cropped; both are filtered, and their label is what "
            "they were made for."
        )
        return [StudySection("Difficulty", said, charts, _table(rows))]

    def _errors(self, rows: Sequence[LabelRow], images: str, by: str) -> Series:
        x, y = [], []
        for low in dict.fromkeys(row.low for row in rows if row.by == by):
            group = [r for r in rows if (r.images, r.by, r.low) == (images, by, low)]
            share = pooled(group)
            if share is not None:
                total = sum(r.count for r in group)
                x.append(sum(r.count * (r.difficulty or 0.0) for r in group) / total)
                y.append(100 * share)
        return Series(images, x, y)

    def _shares(self, rows: Sequence[LabelRow], images: str) -> Series:
        own = [row for row in rows if row.images == images and row.by == LABEL]
        total = sum(row.count for row in own)
        lows = list(dict.fromkeys(row.low for row in own))
        y = [100 * sum(row.count for row in own if row.low == low) / total for low in lows]
        return Series(images, [low + 0.5 / self.bins for low in lows], y)


def threshold_of(bench: Workbench) -> float | None:
    """The recipe's, where it uses one."""
    loss = bench.recipe.finetune.loss(Distillation)
    if loss is None or not loss.soft_labels_only_if_difficult:
        return None
    return loss.difficulty_threshold


def pooled(rows: Sequence[LabelRow]) -> float | None:
    """Share of errors of several rows together; None where there are no samples."""
    total = sum(row.count for row in rows)
    return sum(row.count * (row.errors or 0.0) for row in rows) / total if total else None


def calibration_error(rows: Sequence[LabelRow]) -> float:
    """Mean distance of the bins' errors from what the probabilities say, weighted by samples."""
    own = [row for row in rows if row.by == PREDICTION and row.count]
    total = sum(row.count for row in own)
    off = sum(r.count * abs((r.difficulty or 0.0) - (r.errors or 0.0)) for r in own)
    return off / total if total else float("nan")


def _row(
    images: str,
    seed: int | None,
    by: str,
    low: float,
    high: float,
    values: Tensor,
    wrong: Tensor,
    chosen: Tensor,
) -> LabelRow:
    number = int(chosen.sum())
    mean = float(values[chosen].double().mean()) if number else None
    errors = float(wrong[chosen].double().mean()) if number else None
    return LabelRow(images, seed, by, low, high, number, mean, errors)


def _sides(rows: Sequence[LabelRow], threshold: float) -> str:
    """How many samples lie above a threshold, and the errors on both sides of it."""
    above = [r for r in rows if r.by == THRESHOLD and (r.low, r.high) == (threshold, 1)]
    below = [r for r in rows if r.by == THRESHOLD and (r.low, r.high) == (0, threshold)]
    share = sum(r.count for r in above) / sum(r.count for r in [*above, *below])
    return (
        f"{100 * share:.1f} % have a difficulty of at least {threshold:g} (errors: "
        f"{_percent(pooled(above))} of them, {_percent(pooled(below))} of the others)"
    )


def _percent(share: float | None) -> str:
    return "there are none" if share is None else f"{100 * share:.1f} %"


def _table(rows: Sequence[LabelRow]) -> Table:
    columns = (
        Column("images", numeric=False),
        Column("seed"),
        Column("by", numeric=False),
        Column("from"),
        Column("to"),
        Column("samples"),
        Column("mean difficulty"),
        Column("errors, %"),
    )
    lines = [
        (
            text(row.images),
            cell(row.seed),
            text(row.by),
            cell(row.low, "{:.2f}"),
            cell(row.high, "{:.2f}"),
            cell(row.count),
            cell(row.difficulty, "{:.3f}"),
            cell(None if row.errors is None else 100 * row.errors, "{:.1f}"),
        )
        for row in rows
    ]
    return Table("Difficulty", columns, lines)
