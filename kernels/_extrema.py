"""The extrema of a whole tensor, as partial ranges that the next kernel reduces."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from synq_fast.kernels._affine import maximum_of, minimum_of
from synq_fast.kernels._block_shapes import block_shape
from synq_fast.kernels._layout import power_of_two
from synq_fast.kernels.fake_quantize_dynamic import (
    MAXIMUM_SPLITS,
    TARGET_PROGRAMS,
    ranges_kernel,
)

# Up to here every element is a partial range of its own: one launch less.
SMALL = 8192


class Partials(NamedTuple):
    """Least and greatest values that together hold the extrema of a tensor."""

    low: torch.Tensor
    high: torch.Tensor
    size: int

    @property
    def padded(self) -> int:
        """The power of two that a kernel loads."""
        return power_of_two(self.size)


@triton.jit
def reduce_range(low_ptr, high_ptr, count, COUNT: tl.constexpr):
    """Returns the least and the greatest value of the partial ranges, NaN if any is."""
    index = tl.arange(0, COUNT)
    mask = index < count
    low = tl.load(low_ptr + index, mask=mask, other=float("inf")).to(tl.float32)
    high = tl.load(high_ptr + index, mask=mask, other=float("-inf")).to(tl.float32)
    return minimum_of(low, 0), maximum_of(high, 0)


def partial_ranges(x: torch.Tensor) -> Partials:
    """Reduces a dense tensor to at most SMALL partial ranges."""
    count = x.numel()
    if count <= SMALL:
        return Partials(x, x, count)
    tile, warps = block_shape("ranges_kernel", x.dtype, "rows")
    splits = min(triton.cdiv(count, 4 * tile), TARGET_PROGRAMS, MAXIMUM_SPLITS)
    low, high = torch.empty((2, splits), dtype=torch.float32, device=x.device)
    ranges_kernel[(splits,)](
        x, low, high, 1, 1, count, splits,
        SYMMETRIC=False, BY_COLUMN=False, ROWS=1, COLUMNS=tile,
        num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
    return Partials(low, high, splits)
