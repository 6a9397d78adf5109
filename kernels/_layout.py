"""How a tensor lies in memory, as csrc/layout.h says it, and what every launcher shares."""

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


class ImageLayout(NamedTuple):
    """Memory as (samples, channels, positions), or (samples, positions, channels) if `innermost`.

    As a matrix it has a row per channel of a sample, or a row per position.
    """

    samples: int
    channels: int
    positions: int
    innermost: bool

    @property
    def rows(self) -> int:
        """Rows of one sample."""
        return self.positions if self.innermost else self.channels

    @property
    def columns(self) -> int:
        """Columns of the matrix."""
        return self.channels if self.innermost else self.positions


class PlaneLayout(NamedTuple):
    """Images as planes of rows with `step` values a pixel.

    Contiguous images have a plane per channel and step 1, channels_last ones a plane per image and
    as many values a pixel as channels.
    """

    planes: int
    height: int
    width: int
    step: int


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


def image_layout(x: torch.Tensor) -> tuple[torch.Tensor, ImageLayout]:
    """Returns `x`, copied only if its memory has neither form, and its layout."""
    samples, channels, positions = *x.shape[:2], x.shape[2:].numel()
    order = memory_order(x)
    if order is not None:
        order = [dim for dim in order if x.shape[dim] != 1]
        spatial = [dim for dim in order if dim > 1]
        first = [0] if samples > 1 else []
        middle = [1] if channels > 1 else []
        if order == first + middle + spatial:
            return x, ImageLayout(samples, channels, positions, False)
        if order == first + spatial + middle:
            return x, ImageLayout(samples, channels, positions, True)
    return x.contiguous(), ImageLayout(samples, channels, positions, False)


def plane_layout(x: torch.Tensor) -> tuple[torch.Tensor, PlaneLayout]:
    """Returns `x`, copied only if it is neither contiguous nor channels_last, and its layout."""
    height, width = x.shape[-2:]
    step = 1
    if not x.is_contiguous():
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            step = x.shape[1]
        else:
            x = x.contiguous()
    planes = x.numel() // (height * width * step) if x.numel() > 0 else 0
    return x, PlaneLayout(planes, height, width, step)


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
