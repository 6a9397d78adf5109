"""Inputs of the quantization ops, and their arithmetic once more."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import torch

from synq_fast.testing.case import Sample, constant, noise

SHAPES = {
    (0,): "empty",
    (2, 0, 3): "empty in the middle",
    (): "no dimension",
    (1,): "one element",
    (9,): "shorter than a vector; along its axis each element is a channel",
    (33,): "less than any block, odd",
    (513,): "one more than the CPU's block of the 16-bit types",
    (3, 5, 7): "odd everywhere: no row is aligned",
    (4, 1, 6): "one channel",
    (2, 8, 4, 4): "the common image, aligned",
    (4, 3, 9, 9): "odd rows, three channels",
    (90, 70): "a matrix, unaligned in half precision",
}
LONG = {
    (2049,): "one element beyond a Triton block",
    (10241,): "the first size too large for one CUDA block's shared memory in float32",
    (40001,): "many blocks of Triton and CUDA, odd",
    (700, 48): "more rows than a device of one multiprocessor holds, channels that divide its grid",
    (2, 3, 5501): "channels in two long odd pieces",
    (2, 3, 8000): "the same, aligned: several parts",
    (3, 11000): "rows too long for shared memory, aligned",
}
# Axes with more channels are left out: a channel is a program of its own in some kernels.
MOST_CHANNELS = 100
LARGE = {
    (40, 33, 50): "larger than one thread's share, rows that do not divide it",
    (70001,): "larger than one thread's share, odd",
}


class Part(NamedTuple):
    """What the inputs of an op are made from."""

    reason: str
    x: torch.Tensor
    axis: int | None
    turn: int
    flags: dict[str, Any]

    def choose(self, *choices: Any) -> Any:
        """Returns one of several choices, the next one in every part."""
        return choices[self.turn % len(choices)]


def parts() -> Iterator[Part]:
    """Yields tensors of every kind of size with each of their axes."""
    turns = count()
    for shapes, flags in (
        (SHAPES, {"every_layout": True}),
        (LONG, {}),
        (LARGE, {"large": True, "every_layout": True}),
    ):
        for shape, reason in shapes.items():
            x = noise(*shape, seed=len(shape), scale=3.0)
            axes = [a for a in range(x.ndim) if flags.get("large") or shape[a] <= MOST_CHANNELS]
            for axis in (None, *axes, *([-1] if x.ndim == 4 else [])):
                yield Part(f"{reason}, axis {axis}", x, axis, next(turns), dict(flags))
    sliced = noise(8, 9, 10, scale=3.0).transpose(0, 2)[::2, 1:]
    yield Part("transposed and sliced", sliced, 1, next(turns), {})


def channel_ranges(x: torch.Tensor, axis: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ranges that differ from channel to channel and clip some of the data."""
    if axis is None:
        return constant(-2.1), constant(3.3)
    steps = torch.arange(x.shape[axis], dtype=torch.float32, device="cpu")
    return -0.5 - steps / 7, 0.4 + steps / 5


def ranged(widths: Sequence[int]) -> Iterator[Sample]:
    """Yields every part with a range for each channel, of some widths in turn, and odd strides."""
    for part in parts():
        options = {"bits": part.choose(*widths), "ste": part.choose("identity", "clip")}
        bounds = channel_ranges(part.x, part.axis)
        options["axis"] = part.axis
        yield Sample(part.reason, (part.x, *bounds), options, **part.flags)
    strided = constant(-1.0).expand(4), torch.arange(1.0, 9.0, dtype=torch.float32, device="cpu")
    yield Sample("strided ranges", (noise(3, 4), strided[0], strided[1][::2]), {"axis": 1})


def specially_ranged(widths: Sequence[int]) -> Iterator[Sample]:
    """Yields what is no number, and every unusual range, each with half of four widths."""
    for index, (reason, ends) in enumerate(SPECIAL_RANGES.items()):
        for bits in widths[index % 2 :: 2]:
            special = special_values(), *(constant(end) for end in ends)
            yield Sample(f"range {reason}", special, {"bits": bits, "ste": "clip"}, special=True)


def special_values() -> torch.Tensor:
    """Returns NaN, infinities, zeros of both signs, halves, extremes, subnormals; an odd number."""
    info = torch.finfo(torch.float32)
    values = [float("nan"), float("inf"), 0.0, 1e30, info.max, info.tiny, 1e-30, 1e-40, 1e-8]
    values = [sign * value for value in values for sign in (1, -1)]
    values += [i / 2 for i in range(-20, 21)]
    return torch.tensor(values + values + [0.25], dtype=torch.float32, device="cpu")


SPECIAL_RANGES = {
    "half steps are ties": (-8.0, 7.0),
    "from zero": (0.0, 15.0),
    "within one": (-1.0, 1.0),
    "empty at zero": (0.0, 0.0),
    "empty elsewhere": (3.0, 3.0),
    "narrower than the least width": (1.0, 1.0 + 1.2e-7),
    "zero point beyond 2^23": (1e6, 1e6 + 1.0),
    "zero point between 2^22 and 2^23, where halves exist": (279620.3, 279621.3),
    "the same, negative": (-279621.3, -279620.3),
    "infinite above": (0.0, float("inf")),
    "infinite below": (-float("inf"), 1.0),
    "NaN above": (-1.0, float("nan")),
    "NaN below": (float("nan"), 1.0),
    "wide": (-1e-3, 1e30),
    "wider than the largest float": (-3e38, 3e38),
}
TIED_RANGES = ((-1.0, 1.0), (0.0, 3.7), (-2.0, -0.3), (1e-3, 1.1e-3), (-3e4, 1.0), (-1.3, 2.1))
EVERY_WIDTH = tuple(range(2, 17))


def ties(bits: int, low: float, high: float, *, every: bool = False) -> torch.Tensor:
    """Returns values on and next to rounding boundaries, some 600 or every one, and the ends."""
    scale = (1 / constant(high - low)) * (2**bits - 1)
    last = 2 * 2**bits + 6
    places = torch.arange(-6, last, device="cpu")
    if not every:
        places = torch.cat([places[:12], places[:: max(1, last // 600)], places[-12:]])
    exact = (places.float() / 2 + torch.round(scale * low)) / scale
    upper, lower = constant(float("inf")), constant(float("-inf"))
    return torch.cat([exact, torch.nextafter(exact, upper), torch.nextafter(exact, lower)])


def over_channels(values: torch.Tensor, x: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Returns values per channel, or per group of channels, so that they broadcast over `x`."""
    if axis is None:
        return values.reshape(())
    repeated = values.repeat_interleave(x.shape[axis] // max(values.numel(), 1))
    return repeated.view([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


def grid_over(
    low: torch.Tensor, high: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns scale and zero point of a range over so many steps, each operation in float32."""
    width = torch.clamp(high.float() - low.float(), min=1e-8)
    scale = (1 / width) * steps
    return scale, torch.round(scale * low.float())


def grid_of(low: torch.Tensor, high: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns scale and zero point by the definition, each operation rounded to float32."""
    scale, zero_point = grid_over(low, high, 2**bits - 1)
    return scale, zero_point + 2 ** (bits - 1)


def quantized(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns float32 values, codes and where nothing was clipped."""
    codes = torch.round(scale.float() * x.detach().float() - zero_point.float())
    inside = codes.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (inside + zero_point.float()) / scale.float(), inside, codes == inside


def straight_through(x: torch.Tensor, y: torch.Tensor, passes: torch.Tensor | bool) -> torch.Tensor:
    """Returns `y` in float64, with the gradient of `x` where it passes."""
    y = y.double()
    return torch.where(torch.as_tensor(passes, device=x.device), x + (y - x).detach(), y)
