"""How sums over channels are divided: lanes take 16 bytes of several rows before they add them."""

from typing import NamedTuple

import triton

WARPS = 4
MAXIMUM_COLUMNS = 64  # channels side by side where they are innermost
MINIMUM_TILES = 8  # of a program, before a channel is split
TARGET_PROGRAMS = 2048


class Division(NamedTuple):
    """Tiles of `depth` times `rows` by `columns`, for programs of `groups` by `splits`.

    What is innermost in memory is a multiple of `unit` long, which tells the compiler how wide a
    load may be.
    """

    unit: int
    depth: int
    rows: int
    columns: int
    groups: int
    splits: int


def elements_at_once(size: int) -> int:
    """Returns how many elements of `size` bytes the lanes of a program take with one load each."""
    return 32 * WARPS * (16 // size)


def splits_of(groups: int, tiles: int) -> int:
    """Returns how many programs share the tiles, of depth 1, of one group."""
    return min(triton.cdiv(tiles, MINIMUM_TILES), triton.cdiv(TARGET_PROGRAMS, groups))
