"""Spectra of synthetic images before and after the low-pass filter, beside those of real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from synq_fast.bank.batches import Filter, filtered
from synq_fast.fields import count, items
from synq_fast.reporting.figures.chart import Chart, Series
from synq_fast.reporting.images import spectrum
from synq_fast.reporting.study_page import StudySection
from synq_fast.reporting.tables import Column, Table, text
from synq_fast.reporting.tables import number as cell
from synq_fast.studies.study import Part, spread
from synq_fast.studies.workbench import Workbench

REAL, SYNTHETIC = "real", "synthetic"


@dataclass(frozen=True)
class SpectrumRow:
    """The spectrum of one set of images."""

    images: str
    """``real`` or ``synthetic``."""
    seed: int | None
    cutoff: float | None
    """Of the filter in cycles per image; None: none."""
    count: int
    """Images."""
    radial: list[float]
    """Mean log10 |F| at 0, 1, ... cycles per image; the transform is divided by sqrt(H W)."""
    low: float
    """Mean difference from the real images' over the lower half of the frequencies, 1 up to a
    quarter of the side."""
    high: float
    """The same of the upper half, up to half of the side."""
    distance: float
    """Mean of the absolute difference over both."""


@dataclass(frozen=True)
class Spectra:
    """Mean log-magnitude over spatial frequency."""

    name: ClassVar[str] = "spectra"
    question: ClassVar[str] = (
        "Do synthetic images have more of the high frequencies than real ones, and does the "
        "low-pass filter bring their spectrum nearer?"
    )
    row: ClassVar[type[Any]] = SpectrumRow
    needs: ClassVar[str] = "pictures"

    cutoffs: tuple[float, ...] = items(
        (8.0,),
        "of the Gaussian filter, beside the recipe's",
        low=1,
        high=1e6,
        unit="cycles per image",
    )
    images: int = count(512, "synthetic ones that are looked at, of each seed")

    def parts(self, bench: Workbench) -> Iterator[Part]:
        """The real images, then those of each seed."""
        yield Part("real images", partial(self._real, bench))
        for seed in bench.seeds:
            yield Part(f"synthetic images, seed {seed}", partial(self._synthetic, bench, seed))

    def _real(self, bench: Workbench) -> list[SpectrumRow]:
        assert bench.pictures is not None
        return [_row(REAL, None, None, bench.pictures[1], bench.pictures[1])]

    def _synthetic(self, bench: Workbench, seed: int) -> list[SpectrumRow]:
        assert bench.pictures is not None
        images, _ = bench.source(seed).sample(self.images)
        rows = [_row(SYNTHETIC, seed, None, images, bench.pictures[1])]
        for filter in self._filters(bench):
            seen = filtered(images, filter)
            rows.append(_row(SYNTHETIC, seed, filter.cutoff, seen, bench.pictures[1]))
        return rows

    def _filters(self, bench: Workbench) -> list[Filter]:
        own = bench.recipe.filter
        given = {cutoff: Filter("gaussian", cutoff) for cutoff in self.cutoffs}
        if own.kind != "none":
            given[own.cutoff] = own
        return [given[cutoff] for cutoff in sorted(given)]

    def findings(self, rows: Sequence[SpectrumRow]) -> list[str]:
        """How far the spectra are from the real images'."""
        said = []
        for cutoff in dict.fromkeys(row.cutoff for row in rows if row.images == SYNTHETIC):
            own = [r for r in rows if r.images == SYNTHETIC and r.cutoff == cutoff]
            low, high, away = (
                spread(getattr(r, n) for r in own) for n in ("low", "high", "distance")
            )
            said.append(
                f"Synthetic images, {_behind(cutoff)}: mean log10 |F| differs from the real "
                f"images' by {low.mean:+.3f} at low and {high.mean:+.3f} at high frequencies; mean "
                f"absolute difference {away.mean:.3f}."
            )
        return said

    def sections(self, rows: Sequence[SpectrumRow], bench: Workbench) -> list[StudySection]:
        """The spectra, and their differences from the real images'."""
        cutoffs = list(dict.fromkeys(row.cutoff for row in rows if row.images == SYNTHETIC))
        real = [row.radial for row in rows if row.images == REAL]
        names = [_behind(cutoff) for cutoff in cutoffs]
        radial = [
            _averaged([r.radial for r in rows if r.images == SYNTHETIC and r.cutoff == cutoff])
            for cutoff in cutoffs
        ]
        last = min(bench.teacher.input_shape[1:]) // 2
        places = list(range(1, last + 1))
        series = [Series("real", places, real[0][1 : last + 1])]
        series += [
            Series(name, places, values[1 : last + 1])
            for name, values in zip(names, radial, strict=True)
        ]
        own = bench.recipe.filter
        drawn = own.kind != "none" and own.cutoff <= last
        mark = (own.cutoff, f"cut-off {own.cutoff:g}") if drawn else None
        away = [
            Series(each.name, places, [a - b for a, b in zip(each.y, series[0].y, strict=True)])
            for each in series
        ]
        label = (
            f"Mean log-magnitude over spatial frequency of real images and of: {', '.join(names)}"
        )
        charts = [
            Chart("Spectra", label, "cycles per image", "mean log10 |F|", series, (), mark),
            Chart(
                "Beside the real images'",
                f"Difference from the real images' spectrum of: {', '.join(names)}",
                "cycles per image",
                "difference of log10 |F|",
                away,
                (),
                mark,
            ),
        ]
        shown = "" if bench.pictures is None else f" ({bench.pictures[0]})"
        said = (
            f"Mean over images and channels of log10 |F| along the distance from frequency zero, "
            f"of images as the network takes them; the transform is divided by the square root of "
            f"the number of pixels. Synthetic images before and after the filter, mean over the "
            f"seeds, beside real ones{shown}, which are looked at and used for nothing else."
        )
        return [StudySection("Spectra", said, charts, _table(rows))]


def _averaged(curves: Sequence[Sequence[float]]) -> list[float]:
    return [spread(values).mean for values in zip(*curves, strict=True)]


def _row(
    images: str, seed: int | None, cutoff: float | None, pixels: Tensor, real: Tensor
) -> SpectrumRow:
    own, theirs = (spectrum(images, each).radial.double() for each in (pixels, real))
    side = min(pixels.shape[2:])
    difference = own - theirs
    low, high = difference[1 : side // 4 + 1], difference[side // 4 + 1 : side // 2 + 1]
    both = difference[1 : side // 2 + 1].abs().mean()
    radial = [round(value, 5) for value in own.tolist()]
    values = (round(float(each), 5) for each in (low.mean(), high.mean(), both))
    return SpectrumRow(images, seed, cutoff, len(pixels), radial, *values)


def _behind(cutoff: float | None) -> str:
    return "as synthesized" if cutoff is None else f"cut-off {cutoff:g}"


def _table(rows: Sequence[SpectrumRow]) -> Table:
    columns = (
        Column("images", numeric=False),
        Column("seed"),
        Column("filter", numeric=False),
        Column("count"),
        Column("low frequencies", note="difference of log10 |F| from the real images'"),
        Column("high frequencies", note="difference of log10 |F| from the real images'"),
        Column("distance", note="mean absolute difference"),
    )
    lines = [
        (
            text(row.images),
            cell(row.seed),
            text("none" if row.images == REAL else _behind(row.cutoff)),
            cell(row.count),
            *(cell(value, "{:.3f}") for value in (row.low, row.high, row.distance)),
        )
        for row in rows
    ]
    return Table("Spectra", columns, lines)
