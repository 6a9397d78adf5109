"""Charts as data, drawn into a page or into a picture by the same code."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from synq_fast.reporting.figures.plot import (
    OF_PAGE,
    OF_PICTURE,
    SERIES,
    Figures,
    Palette,
    Panel,
    label_line,
    plot,
    settings,
)
from synq_fast.storage.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 30
"""Pixels of a category."""
_PANEL = 3.6
"""Inches of a chart in a picture."""


class Series(NamedTuple):
    """Values with their spread."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    """Ends of the spread of each ``y``; none where there is no spread."""
    joined: bool = True
    dashed: bool = False


class Chart(NamedTuple):
    """Series over numbers, or in rows that have names."""

    title: str
    label: str
    """What it shows, for those who do not see it."""
    x_label: str
    y_label: str
    series: Sequence[Series]
    rows: Sequence[str] = ()
    """Names of y = 0, 1, ...; the values are then on the horizontal axis, in ``x``, as is their
    spread."""
    mark: tuple[float, str] | None = None
    """A place on the horizontal axis, and what it is called."""
    note: str = ""
    logarithmic: bool = False
    """The horizontal axis."""


def legend(charts: Sequence[Chart]) -> list[tuple[str, int]]:
    """Names of the series of all charts, and the numbers of their colours."""
    names = dict.fromkeys(each.name for chart in charts for each in chart.series if each.name)
    return [(name, place % len(SERIES) + 1) for place, name in enumerate(names)]


def panels(charts: Sequence[Chart], figures: Figures) -> list[Panel]:
    """The charts of one section of a page; a name has one colour in all of them."""
    numbers = dict(legend(charts))
    found = []
    for chart in charts:
        left = 14 + 5.9 * max(map(len, chart.rows)) if chart.rows else 62.0
        height = 60 + _ROW * len(chart.rows) if chart.rows else 200
        with plot(height, left=left) as drawing:
            draw(chart, drawing.axes, OF_PAGE, numbers)
        found.append(figures.panel(chart.title, drawing, chart.label, chart.note))
    return found


def write_picture(charts: Sequence[Chart], path: Path, title: str) -> None:
    """The charts side by side in a PNG file, replaced if it is there.

    Raises:
        StorageError: it cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = 2 if len(charts) == 4 else min(3, len(charts))
    lines = math.ceil(len(charts) / columns)
    numbers = dict(legend(charts))
    with mpl.rc_context({**settings(OF_PICTURE), "font.size": 8.5, "axes.labelsize": 8.5}):
        size = (_PANEL * 1.2 * columns, _PANEL * lines + 0.5)
        figure = Figure(figsize=size, dpi=110, facecolor="white", layout="constrained")
        figure.suptitle(title, fontsize=10, color=OF_PICTURE.ink)
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes, chart in zip(grid.flat, charts, strict=False):
            draw(chart, axes, OF_PICTURE, numbers)
            axes.set_title(chart.title, fontsize=9)
        for axes in list(grid.flat)[len(charts) :]:
            axes.axis("off")
        if len(numbers) > 1:
            handles = [
                Line2D([], [], color=_colour(OF_PICTURE, number), label=name)
                for name, number in numbers.items()
            ]
            figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def draw(chart: Chart, axes: Axes, palette: Palette, numbers: dict[str, int]) -> None:
    """Draw a chart in the colours of a palette."""
    count = len(chart.series)
    for place, each in enumerate(chart.series):
        colour = _colour(palette, numbers.get(each.name, 1))
        # Rows of several series lie a little apart, so that none hides another.
        shift = 0.16 * (place - (count - 1) / 2) if chart.rows else 0.0
        y = [value + shift for value in each.y]
        if each.low:
            along = each.x if chart.rows else y
            away = [
                [max(0.0, v - low) for v, low in zip(along, each.low, strict=True)],
                [max(0.0, high - v) for v, high in zip(along, each.high, strict=True)],
            ]
            axes.errorbar(
                each.x,
                y,
                xerr=away if chart.rows else None,
                yerr=None if chart.rows else away,
                fmt="none",
                ecolor=colour,
                elinewidth=1,
                capsize=2.5,
            )
        style = ("--" if each.dashed else "-") if each.joined and not chart.rows else "none"
        dots = "o" if chart.rows or len(each.x) <= 16 else ""
        axes.plot(each.x, y, linestyle=style, marker=dots, markersize=4, color=colour)
    if chart.logarithmic:
        axes.set_xscale("log")
    _label(chart, axes, palette)


def _label(chart: Chart, axes: Any, palette: Palette) -> None:
    if chart.rows:
        axes.set_yticks(range(len(chart.rows)), list(chart.rows))
        axes.tick_params(axis="y", length=0, labelcolor=palette.ink)
        axes.set_ylim(len(chart.rows) - 0.5, -0.5)
        axes.grid(axis="x")
    else:
        axes.set_ylabel(chart.y_label)
        axes.locator_params(axis="y", nbins=5)
        axes.grid(axis="y")
    if not chart.logarithmic:
        axes.locator_params(axis="x", nbins=5)
    axes.set_axisbelow(True)
    axes.set_xlabel(chart.x_label)
    if chart.mark is not None:
        place, text = chart.mark
        low, high = axes.get_xlim()
        axes.axvline(place, color=palette.muted, linestyle="--", linewidth=1)
        on_the_left = place > low + 0.6 * (high - low)
        label_line(axes, place, text, on_the_left)


def _colour(palette: Palette, number: int) -> str:
    return palette.series[number - 1]
