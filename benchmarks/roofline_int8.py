"""Predicts where products of int8 codes beat bf16 on a GPU, from machine code, without one.

python -m benchmarks.roofline_int8

Predictions, not measurements: docs/gpu.md says what they rest on and what they leave out.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch

from .gpu_model import CARDS, LAUNCH, Card, resident_blocks
from .machine_code import MachineCodeError
from .tables import Table
from .triton_code import Launched, launches_of

# Name; rows, columns and depth of the product.
LAYERS = (
    ("DeiT-Tiny, batch 256: qkv", 256 * 197, 576, 192),
    ("DeiT-Tiny, batch 256: projection", 256 * 197, 192, 192),
    ("DeiT-Tiny, batch 256: MLP, first", 256 * 197, 768, 192),
    ("DeiT-Tiny, batch 256: MLP, second", 256 * 197, 192, 768),
    ("ViT-B, batch 256: qkv", 256 * 197, 2304, 768),
    ("ViT-B, batch 256: projection", 256 * 197, 768, 768),
    ("ViT-B, batch 256: MLP, first", 256 * 197, 3072, 768),
    ("ViT-B, batch 256: MLP, second", 256 * 197, 768, 3072),
    ("ResNet-50, batch 64: 56 px, narrow", 64 * 56**2, 64, 256),
    ("ResNet-50, batch 64: 56 px, wide", 64 * 56**2, 256, 64),
    ("ResNet-50, batch 64: 28 px, narrow", 64 * 28**2, 128, 512),
    ("ResNet-50, batch 64: 28 px, wide", 64 * 28**2, 512, 128),
    ("ResNet-50, batch 64: 14 px, narrow", 64 * 14**2, 256, 1024),
    ("ResNet-50, batch 64: 14 px, wide", 64 * 14**2, 1024, 256),
    ("ResNet-50, batch 64: 7 px, narrow", 64 * 7**2, 512, 2048),
    ("ResNet-50, batch 64: 7 px, wide", 64 * 7**2, 2048, 512),
)
CODES, SUM = "codes", "codes of a sum"
RESULTS = {CODES: torch.int8, SUM: torch.int8, "bfloat16": torch.bfloat16, "float32": torch.float32}
LENGTHS = (256, 512)
"""Depths of two compiled products, whose turns are all written out: their difference is turns."""


Layer: TypeAlias = tuple[int, int, int]


class Product(NamedTuple):
    """A product of codes on one card: tiles, and what a multiprocessor spends on one, cycles."""

    tile: tuple[int, int]
    registers: int
    blocks: int
    """On a multiprocessor at once."""
    beside: float
    """Instructions after the sums, of a value of the result."""
    cycles: float
    limit: str


def launched(layer: Layer, result: str, capability: int, folder: Path) -> Launched:
    """The launch of a layer's product, compiled.

    Raises:
        MachineCodeError: A tool is missing or fails.
    """
    from synq_fast import kernels

    rows, columns, depth = layer
    x, weight = (torch.empty(n, depth, dtype=torch.int8) for n in (rows, columns))
    bias, multiplier = torch.empty(columns, dtype=torch.int32), torch.empty(columns)
    grid, dtype = (0.1, -128, 127, 0), RESULTS[result]
    added = torch.empty(rows, columns, dtype=torch.int8) if result == SUM else None
    given = x, weight, bias, multiplier, grid if dtype == torch.int8 else None, added, grid, dtype
    (found,) = launches_of(lambda: kernels.int8_product(*given), capability, folder)
    return found


def moved_bytes(layer: Layer, result: str) -> int:
    """What a product reads and writes."""
    rows, columns, depth = layer
    of_value = RESULTS[result].itemsize + (result == SUM)
    return (rows + columns) * depth + rows * columns * of_value


def product(card: Card, layer: Layer, result: str, arch: int, folder: Path) -> Product:
    """What a tile of a product takes: the slowest of its parts, and of what waits for another.

    Raises:
        MachineCodeError: The code cannot be compiled or read here.
    """
    from synq_fast.kernels.int8_product import DEPTH, tile_of

    rows, columns, depth = layer
    tile = tile_of(rows, columns, depth, result == SUM)
    short, long = (launched((rows, columns, n), result, arch, folder) for n in LENGTHS)
    own = launched(layer, result, arch, folder).kernel
    of_turn = (long.kernel.length - short.kernel.length) * DEPTH / (LENGTHS[1] - LENGTHS[0])
    if of_turn <= 0:
        raise MachineCodeError(f"turns of {tile} are not written out: no instructions to count")
    after = long.kernel.length - of_turn * LENGTHS[1] / DEPTH
    turns, warps, values = math.ceil(depth / DEPTH), long.threads / 32, tile[0] * tile[1]
    blocks = resident_blocks(card, own, long.threads)
    through_cache = sum(tile) * depth + values * (RESULTS[result].itemsize + (result == SUM))
    cache = through_cache * card.multiprocessors / card.cache * card.clock
    loop = {
        "tensor cores": values * turns * DEPTH / card.int8,
        "cache": cache,
        "instructions": of_turn * turns * warps / 4,
    }
    last = after * warps / 4
    parts = {**loop, "instructions": loop["instructions"] + last}
    # A block's sums come before what is done with them: others have to fill the time.
    parts["order"] = (max(loop.values()) + last) / blocks
    limit = max(parts, key=lambda name: parts[name])
    per_value = after * long.threads / values
    return Product(tile, own.registers, blocks, per_value, parts[limit], limit)


COLUMNS = (
    "layer, result", "M", "N", "K", "tile", "registers", "blocks", "instructions", "MB", "limit",
    "us", "bf16, at best", "times faster",
)  # fmt: skip


def row(
    card: Card, name: str, layer: Layer, result: str, arch: int, folder: Path
) -> tuple[str | float | None, ...]:
    """One line of the table: a product, and bf16's by bytes and peak alone, which no kernel beats.

    Raises:
        MachineCodeError: As `product`.
    """
    rows, columns, depth = layer
    found = product(card, layer, result, arch, folder)
    tiles = math.ceil(rows / found.tile[0]) * math.ceil(columns / found.tile[1])
    moved = moved_bytes(layer, result)
    memory = moved / card.copy
    computed = math.ceil(tiles / card.multiprocessors) * found.cycles / card.clock
    seconds = LAUNCH + max(memory, computed)
    of_bf16 = 2 * moved_bytes(layer, SUM if result == SUM else CODES) / card.copy
    peak = rows * columns * depth / (card.multiprocessors * card.bf16 * card.clock)
    bound = LAUNCH + max(of_bf16, peak)
    return (
        f"{name}, {result}",
        *map(str, layer),
        "x".join(map(str, found.tile)),
        str(found.registers),
        str(found.blocks),
        round(found.beside, 1),
        str(round(moved / 1e6)),
        "memory" if memory >= computed else found.limit,
        round(seconds * 1e6, 1),
        round(bound * 1e6, 1),
        round(bound / seconds, 2),
    )


def main(arguments: list[str] | None = None) -> int:
    """Prints the predictions."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline_int8", description=__doc__)
    parser.add_argument("--card", choices=CARDS, default="H100")
    parser.add_argument("--arch", type=int, default=90, help="to compile for, default 90")
    parser.add_argument("--layer", metavar="TEXT", default="", help="only layers with this name")
    options = parser.parse_args(arguments)
    card, rows = CARDS[options.card], []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for name, *layer in LAYERS:
                for result in RESULTS:
                    if options.layer in name:
                        rows.append(
                            row(card, name, tuple(layer), result, options.arch, Path(folder))
                        )
    except (MachineCodeError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    title = f"predicted for {options.card}, not measured; instructions after the sums for a value"
    print(Table("roofline, int8 products", title, COLUMNS, rows).text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
