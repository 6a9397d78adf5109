"""Draws how near each op comes to the bandwidth of a plain copy, from result files.

python -m benchmarks.plot benchmarks/results/*.json bandwidth.png
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .results_file import ResultsError, read_file
from .rows import Comparison
from .summary import COMPILED

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Series:
    """What belongs to one backend, and how it is drawn; colours of Okabe and Ito."""

    label: str
    colour: str
    marker: str
    size: float = 30


# Drawn in this order, so ours lie on top.
_EAGER = Series("PyTorch eager", "#999999", "|", 60)
_ATEN = Series("nearest ATen op", "#E69F00", "D", 22)
_COMPILE = Series("torch.compile", "#CC79A7", "s", 26)
_OURS = {
    "cpu": Series("synq-fast, CPU C++", "#0072B2", "o", 52),
    "cuda": Series("synq-fast, CUDA C++", "#009E73", "o", 52),
    "triton": Series("synq-fast, Triton", "#D55E00", "^", 48),
}
_ORDER = [_EAGER, _ATEN, _COMPILE, *_OURS.values()]
# Inches of one row, of the space above a suite, and of the title, the axis and the legend.
_ROW, _GAP, _FRAME = 0.24, 0.56, 1.6
# Caches and page faults make some fractions large; they would squeeze all others.
_FURTHEST = 1.5


def series_of(column: str) -> Series | None:
    """Return the series that a column belongs to, or None if it is not drawn."""
    for backend, series in _OURS.items():
        if column.startswith(f"ours ({backend})"):
            return series
    if COMPILED in column:
        return _COMPILE
    if "eager" in column:
        return _EAGER
    return _ATEN if column.startswith("aten") else None


def drawn(rows: Sequence[Comparison]) -> list[Comparison]:
    """Large rows that have a copy to compare with, by suite, each under one allocator setting.

    Where there is the choice it is "raised": by default glibc makes a copy pay for page faults
    that a reduction is spared, which says nothing about bandwidth.
    """
    kept = {(r.suite, r.case): r for r in rows if r.large and r.of_copy(r.copy or "") is not None}
    for row in rows:
        if row.allocator == "raised" and (row.suite, row.case) in kept:
            kept[row.suite, row.case] = row
    order = {name: place for place, name in enumerate(dict.fromkeys(suite for suite, _ in kept))}
    return sorted(kept.values(), key=lambda row: order[row.suite])


def draw(rows: Sequence[Comparison], path: Path, subtitle: str = "") -> None:
    """Write the chart as a PNG.

    Raises:
        ResultsError: No large row has a copy to compare with.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = drawn(rows)
    if not rows:
        raise ResultsError("nothing to draw: no large row has a copy to compare with")
    places = _places(rows)
    height = max(places) + _ROW + _FRAME
    figure = Figure(figsize=(9.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, y in zip(rows, places, strict=True):
        _row(axes, row, y)
    _suite_titles(axes, rows, places)
    _frame(axes, rows, places)
    figure.suptitle("Bandwidth beside a plain copy", x=0.008, ha="left", weight="bold", size=13)
    axes.set_title(subtitle, loc="right", size=8.5, color="#555555", pad=6)
    found = {s for row in rows for name in row.timings if (s := series_of(name))}
    handles: list[Any] = [
        axes.scatter([], [], s=s.size, c=s.colour, marker=s.marker, label=s.label)
        for s in reversed(_ORDER)
        if s in found
    ]
    figure.legend(
        handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=9
    )
    figure.savefig(path, dpi=150, format="png")


def _places(rows: Sequence[Comparison]) -> list[float]:
    """Return each row's distance from the top, in inches; a suite's name stands above its rows."""
    places, y, suite = [], 0.0, None
    for row in rows:
        y += _ROW if row.suite == suite else _GAP
        suite = row.suite
        places.append(y)
    return places


def _row(axes: Axes, row: Comparison, y: float) -> None:
    shares = {name: row.of_copy(name) or 0.0 for name in row.timings if series_of(name)}
    best = max((shares[name] for name in row.our_columns() if name in shares), default=0.0)
    end = min(best, _FURTHEST)
    axes.plot([0, end], [y, y], color="#C9DDEB", linewidth=5, solid_capstyle="butt", zorder=1)
    for place, series in enumerate(_ORDER):
        at = [min(s, _FURTHEST) for name, s in shares.items() if series_of(name) == series]
        axes.scatter(
            at,
            [y] * len(at),
            s=series.size,
            c=series.colour,
            marker=series.marker,
            linewidths=1.5 if series.marker == "|" else 0.6,
            edgecolors=None if series.marker == "|" else "white",
            zorder=3 + place,
            clip_on=False,
        )
    axes.annotate(
        f"{best:.2f}" if best else "-",
        (1.0, y),
        xycoords=("axes fraction", "data"),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        size=8.5,
    )


def _suite_titles(axes: Axes, rows: Sequence[Comparison], places: Sequence[float]) -> None:
    suite = None
    for row, y in zip(rows, places, strict=True):
        if row.suite != suite:
            suite = row.suite
            axes.annotate(
                suite,
                (0, y - 1.05 * _ROW),
                xycoords=("axes fraction", "data"),
                xytext=(-6, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                size=9.5,
                weight="bold",
            )


def _frame(axes: Axes, rows: Sequence[Comparison], places: Sequence[float]) -> None:
    shares = [row.of_copy(n) or 0.0 for row in rows for n in row.timings if series_of(n)]
    right = min(_FURTHEST, max(1.1, math.ceil(10 * max(shares) + 0.5) / 10))
    axes.set_xlim(0, right)
    axes.set_ylim(max(places) + _ROW, min(places) - _GAP)
    axes.set_yticks(places, [row.case for row in rows], size=8.5)
    beyond = "; larger ones on the edge" if max(shares) > _FURTHEST else ""
    axes.set_xlabel(f"bandwidth as a fraction of that of a plain copy{beyond}")
    axes.axvline(1.0, color="black", linewidth=1, linestyle=(0, (4, 3)), zorder=2)
    axes.annotate(
        "copy",
        (1.0, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-4, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        size=8,
    )
    axes.annotate(
        "best of ours",
        (1.0, 1.0),
        xycoords="axes fraction",
        xytext=(4, -3),
        textcoords="offset points",
        va="top",
        size=8,
        color="#555555",
    )
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def draw_files(files: Sequence[Path], path: Path) -> None:
    """Draw the rows of several result files, which should be of one device.

    Raises:
        ResultsError: A file holds no results, or no large row has a copy.
    """
    environments, rows = [], []
    for file in files:
        environment, found = read_file(file)
        environments.append(environment)
        rows += found
    machines = list(dict.fromkeys(map(_machine, environments)))
    if any(row.allocator == "raised" for row in drawn(rows)):
        machines.append("freed memory kept")
    draw(rows, path, "; ".join(machines))


def _machine(environment: dict[str, Any]) -> str:
    device = environment["device"]
    if device == "cpu":
        threads = environment["threads"]
        device = f"{environment['processor']}, {threads} thread{'s' if threads != 1 else ''}"
    return f"{device}, torch {environment['torch']}"


def main() -> int:
    """Draw the files named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", nargs="+", type=Path, help="result files of one device")
    parser.add_argument("image", type=Path, help="the PNG to write")
    options = parser.parse_args()
    usable = []
    for file in options.results:
        try:
            read_file(file)
        except ResultsError as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            usable.append(file)
    try:
        draw_files(usable, options.image)
    except ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
