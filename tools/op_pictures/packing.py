"""How codes lie in bytes."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from synq_fast import ops

from .canvas import FLOAT, FOURTH, LINE, QUANTIZED, THIRD, panels

_COLOURS = (FLOAT, QUANTIZED, THIRD, FOURTH)


def _layout(codes: list[int], values: list[int], bits: int, arrow: str) -> Figure:
    """Codes above, bytes below, their bits between them from the lowest on."""
    figure, (axes,) = panels(1, 1.9)
    axes.set_axis_off()
    stream = [value >> bit & 1 for value in values for bit in range(8)]
    for place, bit in enumerate(stream):
        code = place // bits
        used = code < len(codes)
        colour = _COLOURS[code % len(_COLOURS)] if used else LINE
        axes.add_patch(Rectangle((place, 0), 0.94, 0.9, color=colour, alpha=0.25 if used else 0.5))
        axes.text(place + 0.47, 0.45, bit, ha="center", va="center")
    for number, code in enumerate(codes):
        middle = (number + 0.5) * bits
        colour = _COLOURS[number % len(_COLOURS)]
        axes.text(middle, 1.1, f"code {code}", ha="center", color=colour, weight="bold")
    for number, value in enumerate(values):
        axes.plot([number * 8 + 0.1, number * 8 + 7.84], [-0.15, -0.15], color=LINE, linewidth=2)
        axes.text(number * 8 + 4, -0.55, f"byte {value}", ha="center", weight="bold")
    axes.annotate(
        "",
        (-0.6, -0.2 if arrow == "down" else 1.1),
        (-0.6, 1.1 if arrow == "down" else -0.2),
        arrowprops={"arrowstyle": "->", "linewidth": 1.4},
    )
    axes.text(0, -1.0, "lowest bit first", ha="left")
    axes.set_xlim(-1.2, len(stream) + 0.2)
    axes.set_ylim(-1.2, 1.6)
    return figure


def pack_codes() -> Figure:
    """Seven codes of three bits above three bytes, and the bits between them.

    Each code plus four stands in three bits, lowest first, without gaps, so that the third and
    sixth reach from one byte into the next; the last three bits are zero.
    """
    codes = [-4, -1, 3, 0, 2, -3, 1]
    packed = ops.pack_codes(torch.tensor([codes], dtype=torch.int8), 3)
    return _layout(codes, packed[0].tolist(), 3, "down")


def unpack_codes() -> Figure:
    """Three bytes below the five codes of four bits that are read from them.

    Two codes lie in a byte, the lower half first; the upper half of the last byte, here all ones,
    is ignored.
    """
    values = [0x1F, 0x84, 0xFA]
    packed = torch.tensor([values], dtype=torch.uint8)
    return _layout(ops.unpack_codes(packed, 4, 5)[0].tolist(), values, 4, "up")
