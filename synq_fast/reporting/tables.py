"""Tables of a page, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from synq_fast.reporting.layers import Layers

NOTHING = "\N{EN DASH}"
_TIMES = " \N{MULTIPLICATION SIGN} "


class Cell(NamedTuple):
    """What a cell shows, and what it is sorted by; None comes last in either direction."""

    text: str
    key: float | str | None


class Column(NamedTuple):
    """A column; ``note`` says what its numbers are."""

    title: str
    numeric: bool = True
    note: str = ""


class Table(NamedTuple):
    """A table that the page sorts."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


def text(value: str) -> Cell:
    """A name."""
    return Cell(value, value)


def number(value: float | None, form: str = "{:g}") -> Cell:
    """A number; a dash where there is none."""
    if value is None or math.isnan(value):
        return Cell(NOTHING, None)
    return Cell(form.format(value), value)


def decibels(value: float | None) -> Cell:
    """A ratio in dB; what has no noise at all is exact."""
    if value is not None and math.isinf(value):
        return Cell("exact" if value > 0 else "lost", math.copysign(1e9, value))
    return number(value, "{:.1f}")


def small(value: float | None) -> Cell:
    """A divergence; what rounding leaves of nothing is zero."""
    if value is None or math.isnan(value):
        return Cell(NOTHING, None)
    return Cell("0" if abs(value) < 1e-12 else f"{value:.2e}", value)


def size(count: float) -> str:
    """Bytes in the unit that people would use."""
    for unit, factor in (("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            value = count / factor
            return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """A time."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"


def weight_table(layers: Layers) -> Table:
    """A row of each layer whose weights are quantized."""
    bits = {each.name: each.bits for each in layers.activations}
    columns = (
        Column("layer", numeric=False),
        Column("#", note="order in the network"),
        Column("kind", numeric=False),
        Column("shape", numeric=False),
        Column("weights", note="how many"),
        Column("bits"),
        Column("input bits"),
        Column("bytes", note="packed codes, scales and zero points"),
        Column("weight SNR, dB", note="quantized beside the float network's"),
        Column("output SNR, dB", note="with everything before it"),
        Column("sensitivity, nats", note="KL of the logits, these weights alone quantized"),
    )
    rows = [
        (
            text(row.name),
            number(place),
            text(row.kind),
            Cell(_TIMES.join(map(str, row.shape)), math.prod(row.shape)),
            number(row.parameters, "{:,}"),
            number(row.bits),
            Cell(
                ", ".join(str(bits[name]) for name in row.inputs) or "float",
                min((bits[name] for name in row.inputs), default=32),
            ),
            Cell(size(row.size), row.size),
            decibels(row.noise_db),
            decibels(row.output_db),
            small(row.divergence),
        )
        for place, row in enumerate(layers.weights, 1)
    ]
    return Table("Weights", columns, rows)


def activation_table(layers: Layers) -> Table:
    """A row of each activation quantizer."""
    columns = (
        Column("quantizer", numeric=False),
        Column("#", note="order in the network"),
        Column("read by", numeric=False),
        Column("bits"),
        Column("from", note="least value of the grid"),
        Column("to", note="greatest value of the grid"),
        Column("clipped, %", note="values outside"),
        Column("SNR, dB", note="what it gives beside what it gets"),
        Column("sensitivity, nats", note="KL of the logits, this quantizer alone at work"),
    )
    rows = [
        (
            text(shortened(row.name)),
            number(place),
            text(", ".join(row.readers) or NOTHING),
            number(row.bits),
            number(row.low, "{:.3g}"),
            number(row.high, "{:.3g}"),
            number(100 * row.clipped, "{:.2f}"),
            decibels(row.noise_db),
            small(row.divergence),
        )
        for place, row in enumerate(layers.activations, 1)
    ]
    return Table("Activations", columns, rows)


def shortened(name: str) -> str:
    """A quantizer's name without what all of them begin with."""
    return name.removeprefix("quantize_")
