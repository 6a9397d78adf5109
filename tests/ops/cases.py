"""Inputs of the quantization ops, each with the reason why it is there."""

import itertools

import torch

SHAPES = {
    (0,): "empty",
    (2, 0, 3): "empty in the middle",
    (): "no dimension",
    (1,): "one element",
    (7,): "shorter than a vector",
    (33,): "odd",
    (513,): "one more than the block of the 16-bit types",
    (3, 5, 7, 9): "odd everywhere",
    (2, 8, 14, 14): "an image",
    (4, 1, 6): "one channel",
    (40, 33, 50): "larger than one thread's share, rows that do not divide it",
    (70001,): "larger than one thread's share, odd",
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def layouts(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Returns the same kind of data laid out in every way that a kernel treats differently."""
    x = (torch.randn(shape) * 3).to(dtype)
    result = {"contiguous": x}
    if x.ndim == 4:
        result["channels_last"] = x.to(memory_format=torch.channels_last)
    if x.ndim >= 2:
        result["transposed"] = x.transpose(0, -1)
        result["strided"] = torch.stack([x, x], -1)[..., 0]
        result["expanded"] = x[:1].expand_as(x)
        result["offset"] = torch.cat([x.flatten(), x.flatten()])[1 : 1 + x.numel()].view(shape)
    return result


def special_values() -> torch.Tensor:
    """NaN, infinities, zeros of both signs, the ends of float32, subnormals."""
    info = torch.finfo(torch.float32)
    values = [float("nan"), float("inf"), 0.0, info.max, info.tiny, info.smallest_normal / 4, 1e-8]
    return torch.tensor([sign * value for value in values for sign in (1, -1)] * 5)


def ties(bits: int, low: float, high: float) -> torch.Tensor:
    """Values on and next to every rounding boundary, and beyond both ends."""
    scale = (1 / torch.tensor(high - low)) * (2**bits - 1)
    half_steps = torch.arange(-6, 2 * 2**bits + 6, dtype=torch.float32) / 2
    exact = (half_steps + torch.round(scale * low)) / scale
    upper, lower = torch.tensor(float("inf")), torch.tensor(float("-inf"))
    return torch.cat([exact, torch.nextafter(exact, upper), torch.nextafter(exact, lower)])


def axes(x: torch.Tensor) -> list[int | None]:
    """Returns no axis, every axis, and one counted from the end."""
    return [None, *range(x.ndim), *([-1] if x.ndim else [])]


def channel_ranges(x: torch.Tensor, axis: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ranges that differ from channel to channel and clip some of the data."""
    if axis is None:
        return torch.tensor(-2.1), torch.tensor(3.3)
    count = x.shape[axis]
    steps = torch.arange(count, dtype=torch.float32)
    return -0.5 - steps / 7, 0.4 + steps / 5


ALL = list(itertools.product(SHAPES, DTYPES))
