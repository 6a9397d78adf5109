"""Tables of layers that share a launch, in device memory: written by kernels from their arguments.

A copy from the host would read host memory at each replay of a recorded CUDA graph; arguments are
part of the recording, and nothing waits for them.
"""

import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from synq_fast.kernels._layout import on_device_of, power_of_two

WORDS = tl.constexpr(128)  # of a launch
LEAST_LAYERS = 32


# Older versions of Triton take no tuples as arguments. Types keep all numbers in one version of it.
@triton.jit(do_not_specialize=list(range(1, 130)))
def words_kernel(
    table_ptr, start: tl.int64,
    w0: tl.int64, w1: tl.int64, w2: tl.int64, w3: tl.int64, w4: tl.int64, w5: tl.int64,
    w6: tl.int64, w7: tl.int64, w8: tl.int64, w9: tl.int64, w10: tl.int64, w11: tl.int64,
    w12: tl.int64, w13: tl.int64, w14: tl.int64, w15: tl.int64, w16: tl.int64, w17: tl.int64,
    w18: tl.int64, w19: tl.int64, w20: tl.int64, w21: tl.int64, w22: tl.int64, w23: tl.int64,
    w24: tl.int64, w25: tl.int64, w26: tl.int64, w27: tl.int64, w28: tl.int64, w29: tl.int64,
    w30: tl.int64, w31: tl.int64, w32: tl.int64, w33: tl.int64, w34: tl.int64, w35: tl.int64,
    w36: tl.int64, w37: tl.int64, w38: tl.int64, w39: tl.int64, w40: tl.int64, w41: tl.int64,
    w42: tl.int64, w43: tl.int64, w44: tl.int64, w45: tl.int64, w46: tl.int64, w47: tl.int64,
    w48: tl.int64, w49: tl.int64, w50: tl.int64, w51: tl.int64, w52: tl.int64, w53: tl.int64,
    w54: tl.int64, w55: tl.int64, w56: tl.int64, w57: tl.int64, w58: tl.int64, w59: tl.int64,
    w60: tl.int64, w61: tl.int64, w62: tl.int64, w63: tl.int64, w64: tl.int64, w65: tl.int64,
    w66: tl.int64, w67: tl.int64, w68: tl.int64, w69: tl.int64, w70: tl.int64, w71: tl.int64,
    w72: tl.int64, w73: tl.int64, w74: tl.int64, w75: tl.int64, w76: tl.int64, w77: tl.int64,
    w78: tl.int64, w79: tl.int64, w80: tl.int64, w81: tl.int64, w82: tl.int64, w83: tl.int64,
    w84: tl.int64, w85: tl.int64, w86: tl.int64, w87: tl.int64, w88: tl.int64, w89: tl.int64,
    w90: tl.int64, w91: tl.int64, w92: tl.int64, w93: tl.int64, w94: tl.int64, w95: tl.int64,
    w96: tl.int64, w97: tl.int64, w98: tl.int64, w99: tl.int64, w100: tl.int64, w101: tl.int64,
    w102: tl.int64, w103: tl.int64, w104: tl.int64, w105: tl.int64, w106: tl.int64, w107: tl.int64,
    w108: tl.int64, w109: tl.int64, w110: tl.int64, w111: tl.int64, w112: tl.int64, w113: tl.int64,
    w114: tl.int64, w115: tl.int64, w116: tl.int64, w117: tl.int64, w118: tl.int64, w119: tl.int64,
    w120: tl.int64, w121: tl.int64, w122: tl.int64, w123: tl.int64, w124: tl.int64, w125: tl.int64,
    w126: tl.int64, w127: tl.int64,
):  # fmt: skip
    """Writes its words from `start` on."""
    for i in tl.static_range(WORDS):
        word = (
            w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15, w16, w17, w18,
            w19, w20, w21, w22, w23, w24, w25, w26, w27, w28, w29, w30, w31, w32, w33, w34, w35,
            w36, w37, w38, w39, w40, w41, w42, w43, w44, w45, w46, w47, w48, w49, w50, w51, w52,
            w53, w54, w55, w56, w57, w58, w59, w60, w61, w62, w63, w64, w65, w66, w67, w68, w69,
            w70, w71, w72, w73, w74, w75, w76, w77, w78, w79, w80, w81, w82, w83, w84, w85, w86,
            w87, w88, w89, w90, w91, w92, w93, w94, w95, w96, w97, w98, w99, w100, w101, w102, w103,
            w104, w105, w106, w107, w108, w109, w110, w111, w112, w113, w114, w115, w116, w117,
            w118, w119, w120, w121, w122, w123, w124, w125, w126, w127,
        )[i]  # fmt: skip
        tl.store(table_ptr + start + i, word)


@triton.jit
def layer_of(item, least, first_ptr, layers, LAYERS: tl.constexpr):
    """Returns the layer that an item belongs to, of those whose first items are `least` or more.

    First items grow among them.
    """
    layer = tl.arange(0, LAYERS)
    first = tl.load(first_ptr + layer, mask=layer < layers, other=-1)
    return tl.max(tl.where((first >= least) & (first <= item), layer, 0), 0)


@triton.jit
def count_at(place_ptr, NARROW: tl.constexpr):
    """Returns a number of a table, in 32 bits if NARROW, as Triton has it of a small argument."""
    count = tl.load(place_ptr)
    return count.to(tl.int32) if NARROW else count


@triton.jit
def pointer_of(address, like_ptr, ALIGNED: tl.constexpr):
    """Returns an address as a pointer to elements of another's type; ALIGNED: a multiple of 16."""
    pointer = address.to(like_ptr.dtype)
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


def is_aligned(x: torch.Tensor) -> bool:
    """Returns whether 16 bytes at once can be read from where `x` begins."""
    return x.data_ptr() % 16 == 0


def searched(layers: int) -> int:
    """Returns how many places `layer_of` looks at: the same for most networks."""
    return max(power_of_two(layers), LEAST_LAYERS)


def float_word(value: float) -> int:
    """Returns the bits of the float32 nearest to a number."""
    return int.from_bytes(struct.pack("<f", value), "little")


def table_of(rows: Sequence[Sequence[int]], x: torch.Tensor) -> torch.Tensor:
    """Returns the rows' numbers as int64, (numbers of a row, rows), on the device of `x`."""
    words = [word for field in zip(*rows, strict=True) for word in field]
    words += [0] * (-len(words) % WORDS.value)
    table = torch.empty(len(words), dtype=torch.int64, device=x.device)
    with on_device_of(x):
        for start in range(0, len(words), WORDS.value):
            words_kernel[(1,)](table, start, *words[start : start + WORDS.value], num_warps=1)
    return table[: len(rows) * len(rows[0])].view(-1, len(rows))
