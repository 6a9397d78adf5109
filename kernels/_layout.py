"""How a tensor lies in memory, and what every launcher shares."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

# Read when Triton reads it: at import.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Layout(NamedTuple):
    """Memory as (outer, channels, inner), inner fastest; one range in all is (1, 1, elements)."""

    outer: int
    channels: int
    inner: int

    @property
    def by_column(self) -> bool:
        """Whether channels are the fastest dimension, as in a channels_last image."""
        return self.inner == 1 and self.outer > 1


def memory_order(x: torch.Tensor) -> list[int] | None:
    """Returns the dimensions from slowest to fastest, or None if `x` has gaps or overlaps."""
    order = sorted((d for d in range(x.ndim) if x.shape[d] != 1), key=lambda d: -x.stride(d))
    expected = 1
    for dim in reversed(order):
        if x.stride(dim) != expected:
            return None
        expected *= x.shape[dim]
    return order


def dense(
    x: torch.Tensor, axis: int | None, groups: int | None = None
) -> tuple[torch.Tensor, Layout]:
    """Returns `x`, copied only if it has gaps or overlaps, and its layout around `axis`.

    A run of channels lies in memory like one larger channel: with `groups` these are counted.
    """
    order = memory_order(x)
    if order is None and x.numel() > 0:
        # empty_like keeps the order of the dimensions, as the op's fake says.
        x = torch.empty_like(x).copy_(x)
        order = memory_order(x)
    if axis is None or x.numel() == 0 or order is None:
        return x, Layout(1, 1, x.numel())
    channels = x.shape[axis] if groups is None else groups
    if channels == 1:
        return x, Layout(1, 1, x.numel())
    axis %= x.ndim
    place = order.index(axis)
    inner = x.shape[axis] // channels
    for dim in order[place + 1 :]:
        inner *= x.shape[dim]
    return x, Layout(x.numel() // (channels * inner), channels, inner)


def laid_out_as(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Returns `value` with the strides of the dense tensor `x`, copied only if they differ."""
    return value if value.stride() == x.stride() else torch.empty_like(x).copy_(value)


def output_like(x: torch.Tensor) -> torch.Tensor:
    """Returns an uninitialised tensor for a kernel to write, laid out as `x`.

    The interpreter truncates when it stores bfloat16, where a GPU rounds: there the kernel writes
    float32 and `finished` rounds.
    """
    truncates = INTERPRETED and x.dtype == torch.bfloat16
    return torch.empty_like(x, dtype=torch.float32 if truncates else x.dtype)


def finished(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Returns what a kernel wrote to `output_like(x)` in the dtype of `x`."""
    return y.to(x.dtype)


def on_device_of(x: torch.Tensor) -> AbstractContextManager[object]:
    """Returns a context in which kernels launch on the device of `x`."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def power_of_two(value: int) -> int:
    """Returns the least power of two that is at least `value`."""
    return 1 << max(value - 1, 0).bit_length()
