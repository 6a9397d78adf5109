"""Class activation maps of all kinds, and their gradient in the activations."""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._block_shapes import block_shape
from synq_fast.kernels._cam import COLUMNS, find_stretch, make_coarse, make_tap
from synq_fast.kernels._cam_gradient import pull_back, spread
from synq_fast.kernels._layout import on_device_of, power_of_two


@triton.jit
def map_kernel(
    coarse_ptr, stretch_ptr, map_ptr, height, width, map_height, map_width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (image, tile of pixels) resizes and stretches."""
    program = tl.program_id(0).to(tl.int64)
    column_tiles = tl.cdiv(map_width, COLUMNS)
    tiles = tl.cdiv(map_height, ROWS) * column_tiles
    image = program // tiles
    tile = program % tiles
    y = (tile // column_tiles) * ROWS + tl.arange(0, ROWS)
    x = (tile % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    row, down = make_tap(y, height, map_height)
    column, right = make_tap(x, width, map_width)
    below = tl.minimum(row + 1, height - 1)
    beside = tl.minimum(column + 1, width - 1)
    coarse_ptr += image * height * width
    mask = (y < map_height)[:, None] & (x < map_width)[None, :]
    upper = coarse_ptr + row[:, None] * width
    lower = coarse_ptr + below[:, None] * width
    left = tl.load(upper + column[None, :], mask=mask, other=0.0)
    top = left + right[None, :] * (tl.load(upper + beside[None, :], mask=mask, other=0.0) - left)
    left = tl.load(lower + column[None, :], mask=mask, other=0.0)
    bottom = left + right[None, :] * (tl.load(lower + beside[None, :], mask=mask, other=0.0) - left)
    value = top + down[:, None] * (bottom - top)
    low = tl.load(stretch_ptr + image * 4)
    scale = tl.load(stretch_ptr + image * 4 + 2)
    lift = tl.load(stretch_ptr + image * 4 + 3)
    value = tl.where(scale == 0.0, 0.0, (value * lift - low) * scale)
    offsets = image * map_height * map_width + y.to(tl.int64)[:, None] * map_width + x[None, :]
    tl.store(map_ptr + offsets, value, mask=mask)


def grad_cam(
    activations: torch.Tensor,
    gradients: torch.Tensor,
    score: torch.Tensor | None,
    kind: int,
    height: int,
    width: int,
    clamp: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the maps `(B, 1, height, width)`, weights and coarse maps of `make_coarse`."""
    weights, coarse = make_coarse(activations, gradients, score, kind, clamp)
    images, _, *small = coarse.shape
    result = coarse.new_empty((images, 1, height, width))
    if result.numel() == 0:
        return result, weights, coarse
    stretch = find_stretch(coarse, height, width, eps)
    elements, warps = block_shape("map_kernel", torch.float32)
    columns = min(power_of_two(width), elements, COLUMNS)
    rows = elements // columns
    with on_device_of(coarse):
        map_kernel[(images * triton.cdiv(height, rows) * triton.cdiv(width, columns),)](
            coarse, stretch, result, *small, height, width,
            ROWS=rows, COLUMNS=columns, num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip
    return result, weights, coarse


def grad_cam_backward(
    gradient: torch.Tensor,
    weights: torch.Tensor,
    coarse: torch.Tensor,
    kind: int,
    clamp: float,
    eps: float,
    channels_last: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Returns the gradient of the activations; `weights` are the gradients for maps by element."""
    slope = coarse.contiguous()
    if coarse.numel() > 0:
        _, slope = pull_back(slope, gradient, eps, loss=False, with_slope=True)
    return spread(weights, slope, None, kind, clamp, channels_last, dtype)
