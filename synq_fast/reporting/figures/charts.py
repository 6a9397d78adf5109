"""The plots of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from synq_fast.reporting.accuracy import Accuracy
from synq_fast.reporting.figures.plot import (
    FLOAT,
    INK,
    LINE,
    MUTED,
    QUANTIZED,
    SERIES,
    THIRD,
    Drawing,
    label_line,
    plot,
)
from synq_fast.reporting.images import Spectrum
from synq_fast.reporting.layers import Histogram

_POINTS = 300
_STEMS = 32
_CROWDED, _LEAST = 0.05, 1e-6


class Curve(NamedTuple):
    """Values over steps."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]


def curves(found: Sequence[Curve], *, alike: bool = False) -> Drawing:
    """Losses over steps; on a logarithmic scale where they span more than a factor of ten.

    Args:
        found: the curves.
        alike: they are the same term of different images: one colour, thin.
    """
    with plot() as drawing:
        axes = drawing.axes
        for curve, colour in zip(found, _cycled(len(found)), strict=True):
            every = math.ceil(len(curve.steps) / _POINTS)
            marker = "o" if len(curve.steps) == 1 else ""
            axes.plot(
                curve.steps[::every],
                curve.values[::every],
                color=FLOAT if alike else colour,
                linewidth=1.0 if alike and len(found) > 1 else 1.6,
                alpha=0.7 if alike and len(found) > 1 else 1.0,
                marker=marker,
            )
        values = [v for curve in found for v in curve.values if v > 0]
        if values and max(values) > 10 * min(values) and all(min(c.values) > 0 for c in found):
            _logarithmic(axes, min(values), max(values))
        else:
            every_value = [v for curve in found for v in curve.values]
            axes.set_ylim(min(0.0, 1.08 * min(every_value)), 1.08 * max(0.0, *every_value) or 1.0)
            axes.locator_params(axis="y", nbins=4)
        axes.set_xlim(0, 1.02 * max(s for curve in found for s in curve.steps))
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("step")
        axes.grid(axis="y")
    return drawing


def over_depth(first: Sequence[float], last: Sequence[float]) -> Drawing:
    """A loss of each block, in the order of the network: at its first record and at its last."""
    places = range(1, len(last) + 1)
    with plot() as drawing:
        axes = drawing.axes
        axes.plot(places, first, "o-", color=MUTED, markersize=3, linewidth=1)
        axes.plot(places, last, "o-", color=FLOAT, markersize=4)
        values = [*first, *last]
        if min(values) > 0 and max(values) > 10 * min(values):
            _logarithmic(axes, min(values), max(values))
        else:
            axes.set_ylim(min(0.0, *values), 1.08 * max(0.0, *values) or 1.0)
        axes.locator_params(axis="x", integer=True, nbins=6)
        axes.set_xlabel("block, from the image to the logits")
        axes.grid(axis="y")
    return drawing


def _beside(labels: Iterable[str]) -> float:
    """What texts beside an axis take, in pixels."""
    return 12 + 5.9 * max(map(len, labels))


def _cycled(count: int) -> list[str]:
    return [SERIES[n % len(SERIES)] for n in range(count)]


def _logarithmic(axes: Any, low: float, high: float) -> None:
    axes.set_yscale("log")
    _decades(axes.yaxis, math.floor(math.log10(low)), math.ceil(math.log10(high)))
    axes.set_ylim(low / 1.3, high * 1.3)


def _decades(axis: Any, first: int, last: int) -> None:
    """At most five ticks, each at a power of ten, without formulas."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    every = max(1, math.ceil((last - first) / 4))
    axis.set_major_locator(FixedLocator([10.0**n for n in range(first, last + 1, every)]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def accuracy(found: Sequence[Accuracy], span: tuple[float, float]) -> Drawing:
    """Top-1 of the stages of a run, each with its standard error.

    Args:
        found: in the order of the run.
        span: what the axis shows in percent.
    """
    with plot(48 + 26 * len(found), left=_beside(each.stage for each in found)) as drawing:
        axes = drawing.axes
        for row, each in enumerate(found):
            colour = {"float": FLOAT, "last step": QUANTIZED}.get(each.stage, MUTED)
            axes.errorbar(
                each.top1, row, xerr=each.error, fmt="o", color=colour, capsize=3, markersize=5
            )
            right = each.top1 < (span[0] + span[1]) / 2
            gap = each.error + 0.015 * (span[1] - span[0])
            axes.text(
                each.top1 + (gap if right else -gap),
                row,
                f"{each.top1:.1f}",
                va="center",
                ha="left" if right else "right",
                fontsize=10,
            )
        axes.axvline(found[0].top1, color=LINE, linewidth=0.8, zorder=0)
        axes.set_yticks(range(len(found)), [each.stage for each in found])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xlim(*span)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("top-1 in %")
    return drawing


def histogram(found: Histogram) -> Drawing:
    """Values, and how often each level of the grid is taken; both as shares of one step."""
    with plot(118, left=8, bottom=20) as drawing:
        axes = drawing.axes
        edges, levels = found.edges.numpy(), found.levels.numpy()
        step = float(levels[1] - levels[0])
        density = found.shares.numpy() / (np.diff(edges) / step)
        # Roots, so that tails are seen beside the zeros of a ReLU.
        axes.stairs(np.sqrt(density), edges, fill=True, color=FLOAT, alpha=0.3)
        axes.stairs(np.sqrt(density), edges, color=FLOAT, linewidth=0.9)
        taken = np.sqrt(found.taken.numpy())
        if len(levels) <= _STEMS:
            axes.vlines(levels, 0, taken, color=QUANTIZED, linewidth=1.8)
            axes.plot(levels, taken, "o", color=QUANTIZED, markersize=2.6)
        else:
            sides = np.append(levels - step / 2, levels[-1] + step / 2)
            axes.stairs(taken, sides, color=QUANTIZED, linewidth=0.9)
        reach = levels[0] - step / 2, levels[-1] + step / 2
        axes.axvspan(*reach, color=LINE, alpha=0.3, linewidth=0)
        axes.set_ylim(0, 1.08 * max(float(taken.max()), float(np.sqrt(density).max())))
        axes.set_xlim(float(edges[0]), float(edges[-1]))
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=5)
    return drawing


def difficulties(values: Tensor, threshold: float | None) -> Drawing:
    """How many images have which difficulty; on a logarithmic scale where nearly all are easy."""
    crowded = len(values) > 0 and float(values.double().quantile(0.95)) < _CROWDED
    with plot(left=52) as drawing:
        axes = drawing.axes
        if crowded:
            first = math.floor(math.log10(max(_LEAST, float(values.min()))))
            bins = np.geomspace(10.0**first, 1, 26).tolist()
            axes.set_xscale("log")
            _decades(axes.xaxis, first, 0)
        else:
            bins = [n / 25 for n in range(26)]
        _bars(axes, values.clamp_min(_LEAST), bins)
        axes.set_xlabel("1 - p(label) of the float network")
        if threshold is not None:
            axes.axvline(threshold, color=QUANTIZED, linestyle="--")
            label_line(axes, threshold, f"threshold {threshold:g}", crowded or threshold > 0.65)
    return drawing


def similarities(values: Tensor) -> Drawing:
    """How many pairs of maps are how alike; the axis begins where the least alike are."""
    least = float(values.min()) if len(values) else 0.0
    low = next(start for start in (0.99, 0.95, 0.9, 0.8, 0.5, 0.0) if start <= least)
    with plot(left=52) as drawing:
        _bars(drawing.axes, values, np.linspace(low, 1, 26).tolist())
        drawing.axes.set_xlabel("cosine similarity")
    return drawing


def _bars(axes: Any, values: Tensor, bins: list[float]) -> None:
    axes.hist(values.numpy(), bins=bins, color=FLOAT, alpha=0.85)
    axes.set_xlim(bins[0], bins[-1])
    axes.set_ylabel("images")
    axes.locator_params(axis="y", nbins=4, integer=True)
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def spectra(found: Sequence[Spectrum], cutoff: float | None) -> Drawing:
    """Mean log-magnitude over the distance from frequency zero."""
    with plot(220, left=52) as drawing:
        axes = drawing.axes
        for each, colour in zip(found, (FLOAT, QUANTIZED, THIRD), strict=False):
            axes.plot(each.frequency.numpy(), each.radial.numpy(), color=colour)
        last = float(found[0].frequency[-1])
        if cutoff is not None and cutoff <= last:
            axes.axvline(cutoff, color=MUTED, linestyle="--", linewidth=1)
            label_line(axes, cutoff, f"cut-off {cutoff:g}", cutoff > 0.65 * last)
        axes.set_xlim(0, last)
        axes.set_xlabel("cycles per image")
        axes.set_ylabel("mean log10 |F|")
        axes.locator_params(axis="y", nbins=5)
        axes.grid(axis="y")
    return drawing


def times(seconds: Mapping[str, float]) -> Drawing:
    """Seconds of each phase."""
    with plot(46 + 26 * len(seconds), left=_beside(seconds)) as drawing:
        axes = drawing.axes
        rows = range(len(seconds))
        axes.barh(rows, list(seconds.values()), color=FLOAT, height=0.62)
        axes.set_yticks(rows, list(seconds))
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(seconds) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("seconds")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
    return drawing
