"""The parts of a page that are computed: panels, tables and tiles of one report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from synq_fast.bank.images import spread
from synq_fast.reporting.contents import Images, Report, RunReport
from synq_fast.reporting.figures import charts
from synq_fast.reporting.figures.charts import Curve
from synq_fast.reporting.figures.pictures import heat, overlay, picture
from synq_fast.reporting.figures.plot import Figures, Panel
from synq_fast.reporting.maps import Maps
from synq_fast.reporting.tables import (
    Cell,
    Column,
    Table,
    duration,
    number,
    shortened,
    size,
    text,
)

_PAIRS, _LARGE_PAIRS = 36, 12
_MAPS, _FEWEST_MAPS = 30, 10
_MAP_SIDE = 112
"""Pixels to which larger maps are reduced."""
_HISTOGRAMS = 300
"""Of a whole page."""
_LARGE = 96
"""Longest side of images of which more are shown."""
_TITLES = {
    "synthesis": "Synthesis",
    "generator": "Generator",
    "blocks": "Block by block",
    "finetune": "End to end",
}
_NO_TERMS = frozenset({"stage", "block", "batch", "step", "learning_rate"})


class Group(NamedTuple):
    """Panels that belong together."""

    title: str
    panels: Sequence[Panel]
    legend: Sequence[tuple[str, int]] = ()
    """Names of curves, and the numbers of their colours."""
    note: str = ""


class Tile(NamedTuple):
    """Pictures side by side, each with a text for those who do not see it."""

    pictures: Sequence[tuple[str, str]]
    caption: str


def accuracy_panels(report: Report, figures: Figures) -> list[Panel]:
    """One for each run that was measured, on an axis of its own."""
    panels = []
    for run in report.runs:
        if not run.accuracies:
            continue
        low = min(a.top1 - a.error for a in run.accuracies)
        high = max(a.top1 + a.error for a in run.accuracies)
        gap = max(0.5, 0.08 * (high - low))
        span = low - gap, min(high + gap, 100 + 0.04 * (100 - low))
        said = "; ".join(f"{a.stage} {a.top1:.2f} ± {a.error:.2f} %" for a in run.accuracies)
        label = f"Top-1 of {run.bits}: {said}"
        panels.append(figures.panel(run.bits, charts.accuracy(run.accuracies, span), label))
    return panels


def accuracy_table(report: Report) -> Table | None:
    """Every measurement."""
    rows = []
    for run in report.runs:
        floating = run.accuracies[0].top1 if run.accuracies else math.nan
        for each in run.accuracies:
            name = each.stage
            if name == "best seen":
                name += f" (step {each.step}; not the result)" if each.step else " (not the result)"
            rows.append(
                (
                    text(run.bits),
                    text(name),
                    number(each.top1, "{:.2f}"),
                    number(each.error, "{:.2f}"),
                    number(floating - each.top1, "{:.2f}"),
                    number(each.top5, "{:.2f}"),
                    number(each.loss, "{:.4f}"),
                    number(each.count),
                )
            )
    columns = (
        Column("bits", numeric=False),
        Column("network", numeric=False),
        Column("top-1, %"),
        Column("± points", note="binomial standard error"),
        Column("lost, points"),
        Column("top-5, %"),
        Column("loss, nats"),
        Column("images"),
    )
    return Table("Accuracy", columns, rows) if rows else None


def loss_groups(
    records_of_all: Iterable[dict[str, Any]], whose: str, figures: Figures
) -> list[Group]:
    """The losses of each stage: a panel for each term, or for each block."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for record in records_of_all:
        stages.setdefault(str(record.get("stage", "")), []).append(record)
    groups = []
    for stage, records in stages.items():
        title = _TITLES.get(stage, stage)
        if stage == "blocks":
            groups.append(_block_group(title, records, figures, whose))
        else:
            groups.append(_term_group(title, records, figures, whose))
    return groups


def _terms(records: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for r in records for key in r if key not in _NO_TERMS))


def _curve(label: str, term: str, records: Sequence[dict[str, Any]]) -> Curve:
    own = [r for r in records if term in r]
    return Curve(label, [r["step"] for r in own], [r[term] for r in own])


def _term_group(title: str, records: list[dict[str, Any]], figures: Figures, bits: str) -> Group:
    batches = list(dict.fromkeys(r.get("batch") for r in records))
    panels = []
    for term in _terms(records):
        found = [_curve(str(b), term, [r for r in records if r.get("batch") == b]) for b in batches]
        if not any(v for curve in found for v in curve.values):
            continue  # a loss that is off
        last = found[-1].values[-1]
        label = f"{title} of {bits}: {term} over steps, {last:.4g} at the end"
        panels.append(figures.panel(term, charts.curves(found, alike=True), label))
    several = len(batches) > 1
    note = f"A line for each of {len(batches)} batches of images." if several else ""
    return Group(title, panels, note=note)


def _block_group(title: str, records: list[dict[str, Any]], figures: Figures, bits: str) -> Group:
    """The loss over depth, then a panel for each block that has more than one record."""
    used = [t for t in _terms(records) if any(r.get(t) for r in records)]
    blocks = {
        block: [r for r in records if r["block"] == block]
        for block in dict.fromkeys(str(r["block"]) for r in records)
    }
    panels = []
    if used and len(blocks) > 1:
        ends = [(own[0].get(used[0], 0.0), own[-1].get(used[0], 0.0)) for own in blocks.values()]
        told = ", ".join(f"{b} {last:.3g}" for b, (_, last) in zip(blocks, ends, strict=True))
        panels.append(
            figures.panel(
                f"{used[0]}, all blocks",
                charts.over_depth([first for first, _ in ends], [last for _, last in ends]),
                f"{used[0]} of every block of {bits} at the last record: {told}",
                "grey: first record",
            )
        )
    for block, own in blocks.items():
        found = [_curve(term, term, own) for term in used if any(r.get(term) for r in own)]
        if found and len(own) > 1:
            told = ", ".join(f"{c.label} {c.values[0]:.3g} to {c.values[-1]:.3g}" for c in found)
            label = f"Block {block} of {bits}: {told}"
            panels.append(figures.panel(block, charts.curves(found), label))
    legend = [(term, n) for n, term in enumerate(used, 1)] if len(used) > 1 else []
    note = (
        "How far what each block gives is from what it gives in the float network (local), and "
        "what the last block reads because of it (global). Errors add up with depth."
    )
    return Group(title, panels, legend, note)


def is_large(images: Tensor) -> bool:
    """Whether images (N, C, H, W) need room to be seen."""
    return max(images.shape[2:]) > _LARGE


def image_tiles(images: Images) -> list[Tile]:
    """Images before and after the filter."""
    count = _LARGE_PAIRS if is_large(images.before) else _PAIRS
    tiles = []
    for i in spread(len(images.before), count).tolist():
        label = int(images.labels[i])
        pictures = [(picture(images.before[i]), f"synthetic image of class {label}")]
        if images.cutoff is not None:
            alt = f"the same image of class {label} after the low-pass filter"
            pictures.append((picture(images.after[i]), alt))
        tiles.append(Tile(pictures, f"class {label}"))
    return tiles


def spectrum_tiles(images: Images) -> tuple[list[Tile], float, float]:
    """The mean spectra on one scale, and its ends."""
    values = torch.cat([each.magnitude.flatten() for each in images.spectra])
    # Frequency zero and what the filter leaves of the highest would take the whole scale.
    low, high = (float(values.quantile(q)) for q in (0.02, 0.995))
    tiles = [
        Tile(
            [
                (
                    heat(each.magnitude, low, high),
                    f"mean log-magnitude spectrum, {each.title}: {_falls(each.radial)}",
                )
            ],
            f"{each.title}, {each.images} images",
        )
        for each in images.spectra
    ]
    return tiles, low, high


def _falls(radial: Tensor) -> str:
    middle = float(radial[len(radial) // 2])
    return (
        f"{float(radial[1]):.2f} at one cycle per image, {middle:.2f} half way and "
        f"{float(radial[-1]):.2f} at the highest frequency"
    )


def map_tiles(maps: Maps, runs: int) -> list[Tile]:
    """From the least alike to the most; fewer where a page has many runs."""
    count = max(_FEWEST_MAPS, _MAPS // (1 + runs // 3))
    images, theirs, ours = (
        _reduced(x) for x in (maps.images, maps.float_maps, maps.quantized_maps)
    )
    order = maps.similarity.nan_to_num(-1.0).argsort()
    tiles = []
    for i in order[spread(len(order), count)].tolist():
        label, value = int(maps.labels[i]), float(maps.similarity[i])
        told = "no map" if math.isnan(value) else f"{value:.3f}"
        other = "" if maps.same[i] else ", named otherwise"
        tiles.append(
            Tile(
                [
                    (picture(images[i]), f"synthetic image that is seen as class {label}"),
                    (overlay(images[i], theirs[i]), "map of the float network"),
                    (
                        overlay(images[i], ours[i]),
                        f"map of the quantized network, similarity {told}",
                    ),
                ],
                f"class {label}: {told}{other}",
            )
        )
    return tiles


def _reduced(images: Tensor) -> Tensor:
    """Images (N, C, H, W) or maps (N, H, W) of which each side has at most so many pixels."""
    longest = max(images.shape[-2:])
    if longest <= _MAP_SIDE:
        return images
    size = [max(1, side * _MAP_SIDE // longest) for side in images.shape[-2:]]
    planes = images.flatten(0, -3)[:, None]
    small = functional.interpolate(planes, size=size, mode="bilinear", antialias=True)
    return small.view(*images.shape[:-2], *size)


def histogram_groups(run: RunReport, runs: int, figures: Figures) -> tuple[list[Group], int]:
    """Values and grids of every quantizer, and of how many there was no room."""
    assert run.layers is not None
    rows = [(row.name, row.divergence or 0.0) for row in run.layers.weights]
    rows += [(row.name, row.divergence or 0.0) for row in run.layers.activations]
    rows.sort(key=lambda row: -row[1])
    shown = {name for name, _ in rows[: _HISTOGRAMS // runs]}
    weights = [
        figures.panel(
            row.name,
            charts.histogram(row.histogram),
            f"Weights of {row.name} at {row.bits} bits of {run.bits}: "
            f"{_levels_used(row.histogram.taken)}",
            f"{row.bits} bits",
        )
        for row in run.layers.weights
        if row.name in shown
    ]
    activations = [
        figures.panel(
            shortened(row.name),
            charts.histogram(row.histogram),
            f"Activations of {row.name} at {row.bits} bits of {run.bits}: "
            f"{100 * row.clipped:.2f} % outside {row.low:.3g} to {row.high:.3g}",
            f"{row.bits} bits, {100 * row.clipped:.1f} % clipped",
        )
        for row in run.layers.activations
        if row.name in shown
    ]
    groups = [
        Group("Weights, in steps of each channel's grid", weights),
        Group("Activations", activations),
    ]
    return [group for group in groups if group.panels], len(rows) - len(shown)


def _levels_used(taken: Tensor) -> str:
    return f"{int((taken > 0).sum())} of {len(taken)} levels are taken"


class Covered(NamedTuple):
    """What is quantized in some runs, and what is not."""

    runs: Sequence[str]
    coverage: Mapping[str, Any]
    table: Table | None


def covered(report: Report) -> list[Covered]:
    """Runs by what they quantize."""
    groups: dict[str, list[RunReport]] = {}
    for run in report.runs:
        if run.coverage:
            alike = {k: v for k, v in run.coverage.items() if k != "widths"}
            groups.setdefault(repr(alike), []).append(run)
    return [
        Covered([run.bits for run in runs], runs[0].coverage, _float_parts(runs[0]))
        for runs in groups.values()
    ]


def _float_parts(run: RunReport) -> Table | None:
    rows = [
        (text(kind), text(part["name"]), text(part["reason"]))
        for kind, key in (("weights", "float_weights"), ("input", "float_inputs"))
        for part in run.coverage.get(key, ())
    ]
    columns = (
        Column("what", numeric=False),
        Column("of the layer", numeric=False),
        Column("why", numeric=False),
    )
    return Table("In floating point", columns, rows) if rows else None


def time_table(report: Report) -> Table | None:
    """Seconds of every phase of every run."""
    phases = list(dict.fromkeys(p for run in report.runs for p in run.seconds))
    if not phases:
        return None
    columns = (Column("phase", numeric=False), *(Column(run.bits) for run in report.runs))

    def told(seconds: float | None) -> Cell:
        return number(None) if seconds is None else Cell(duration(seconds), seconds)

    rows = [(text(p), *(told(run.seconds.get(p)) for run in report.runs)) for p in phases]
    return Table("Time", columns, rows)


class Fact(NamedTuple):
    """A number that stands at the top."""

    name: str
    value: str
    words: str


def facts(run: RunReport) -> list[Fact]:
    """What a run comes to."""
    found = []
    named = {a.stage: a for a in run.accuracies}
    floating, last = named.get("float"), named.get("last step") or named.get("after blocks")
    last = last or named.get("calibrated")
    if floating and last:
        words = f"± {last.error:.2f}; float {floating.top1:.2f} %"
        found.append(Fact(f"Top-1, {last.stage}", f"{last.top1:.2f} %", words))
    if run.agreement:
        words = f"of {run.agreement.images} synthetic images; KL {run.agreement.divergence:.3g}"
        found.append(Fact("Same class as float", f"{100 * run.agreement.same:.1f} %", words))
    if run.layers:
        packed = sum(row.size for row in run.layers.weights)
        whole = sum(row.float_size for row in run.layers.weights)
        rest = run.layers.float_bytes
        words = f"{size(whole + rest)} in float32; {size(rest)} of it stay"
        found.append(Fact("Parameters", size(packed + rest), words))
    if run.seconds:
        longest = max(run.seconds, key=lambda phase: run.seconds[phase])
        words = f"{duration(run.seconds[longest])} of it {longest}"
        found.append(Fact("Time", duration(sum(run.seconds.values())), words))
    return found
