"""The search for the range with the least quantization error."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import EXACT, OpCase, Sample, nbytes, noise
from synq_fast.testing.cases.fake_quantize import oracle as fake_quantize

# Two candidates whose losses differ by less than this, relative to the least, are as good.
EXCESS = 1e-5
# Elements of all candidates together, which stay in a cache.
AT_ONCE = 1 << 15
DISTRIBUTIONS = {
    "normal": "no surprise",
    "relu": "half of it one value, the range's end",
    "cubed": "heavy tails",
    "cauchy": "most of the range is empty",
    "constant": "no range",
    "two points": "no error at all with the whole range",
    "integers": "many values on the edges of histograms and of levels",
    "outlier": "the rest lies in a single bin of a histogram",
    "far from zero": "no zero in the range",
    "subnormal errors": "errors whose power is subnormal",
    "overflowing errors": "|error|^2.4 exceeds float32",
}
SIZES = {
    1: "one element",
    2: "two",
    17: "less than any vector or block, odd",
    257: "one more than the CPU's partial sums",
    2048: "one block of CUDA's and Triton's exactly",
    2049: "one element beyond it",
    4097: "one element beyond a tile of the CPU's",
}
# Of weights, with an axis.
CHANNELS = {
    ((5, 9), 0): "a depthwise filter a channel",
    ((7, 3, 3, 3), 0): "a convolution, odd",
    ((2, 4, 3, 5), 1): "channels in two pieces",
    ((6, 5, 2), -1): "channels innermost",
    ((1, 40), 0): "one channel",
    ((3, 1), 0): "one element a channel",
    ((2, 2049), 0): "channels of one element beyond a block",
}
LARGE_CHANNELS = {
    ((96, 1, 3, 3), 0): "more channels than threads",
    ((16, 4608), 0): "channels that are worth a histogram",
    ((2, 3, 40_000), 1): "the same in pieces",
    ((3, 70_001), 0): "channels of several blocks",
    ((40, 50, 20), 2): "twenty channels innermost",
}
LARGE = {
    9000: "several blocks",
    33000: "more than one thread's share",
    70_001: "where the CPU looks at a histogram first",
}


def call(namespace: Any, x: torch.Tensor, *, bits: int = 4, **options: Any) -> Any:
    """Calls the op."""
    return namespace.search_range(x, bits, **options)


def distribution(name: str, count: int, seed: int = 0) -> torch.Tensor:
    """Returns `count` float32 values, each kind a way for a search to go wrong."""
    x = noise(count, seed=seed)
    match name:
        case "relu":
            return x.relu()
        case "cubed":
            return x**3
        case "cauchy":
            return x / noise(count, seed=seed + 1)
        case "constant":
            return torch.full_like(x, 0.7)
        case "two points":
            return torch.where(x > 0.5, torch.full_like(x, 1.8), torch.full_like(x, -1.2))
        case "integers":
            return (x * 4).round()
        case "outlier":
            x[-1] = 1e3
            return x
        case "far from zero":
            return x / 8 + 100
        case "subnormal errors":
            return x * 1e-9
        case "overflowing errors":
            return x * 1e20
    return x


def inputs() -> Iterator[Sample]:
    """Yields distributions; few candidates where kernels run one thread at a time."""
    few = {"candidates": 9}
    options: dict[str, Any]
    yield Sample("typical", (noise(4, 5, seed=1),), {"bits": 3, "candidates": 6})
    for name, reason in DISTRIBUTIONS.items():
        beyond = name == "overflowing errors"
        tensors = (distribution(name, 300),)
        yield Sample(f"{name}: {reason}", tensors, few, beyond_reference=beyond)
        for seed, (count, bits) in enumerate(((50, 2), (50, 16), (6000, 3), (40_000, 8))):
            tensors = (distribution(name, count, seed),)
            options = {"bits": bits}
            yield Sample(f"{name}, {count}", tensors, options, large=True, beyond_reference=beyond)
    for bits in (*range(2, 11), 16):
        yield Sample(f"{bits} bits", (distribution("cubed", 600, bits),), {**few, "bits": bits})
    for index, norm in enumerate((0.5, 1.0, 2.0, 4.0, 16.0)):
        for bits in (3, 4, 8, 9)[index % 2 :: 2]:
            options = {"bits": bits, "norm": norm}
            yield Sample(f"norm {norm}", (distribution("cubed", 700, bits),), {**few, **options})
            yield Sample(f"norm {norm}", (distribution("cubed", 9000),), options, large=True)
    for size, reason in SIZES.items():
        yield Sample(reason, (distribution("cubed", size),), {**few, "bits": 3})
    for size, reason in LARGE.items():
        yield Sample(reason, (distribution("normal", size, size),), large=True)
    for candidates in (1, 2, 50, 100):
        # Many small values beside an outlier: the smallest range on offer wins.
        x = torch.cat([torch.full_like(noise(300), 0.01), torch.ones_like(noise(1))])
        yield Sample(f"{candidates} candidates", (x,), {"bits": 2, "candidates": candidates})
    yield Sample("an image", (noise(2, 3, 5, 6),), few, every_layout=True)
    yield Sample("an image", (noise(3, 8, 9, 10),), every_layout=True, large=True)
    for seed in range(100):
        x = distribution("cubed", 4 + seed % 13, seed)
        yield Sample("close decisions", (x,), {"bits": 3}, large=seed > 4)
    for shapes, large in ((CHANNELS, False), (LARGE_CHANNELS, True)):
        for (shape, axis), reason in shapes.items():
            x = distribution("cubed", math.prod(shape), len(shape)).view(shape)
            options = {"bits": 3, "axis": axis, **({} if large else {"candidates": 5})}
            yield Sample(reason, (x,), options, large=large, every_layout=not large)
    for count in (60, 5000):
        # The last overflows the reference.
        rows = torch.stack([distribution(name, count) for name in DISTRIBUTIONS])
        options = {"axis": 0, "candidates": 9 if count == 60 else 80}
        yield Sample("a channel of each distribution", (rows[:-1],), options, large=count > 60)
    for axis in (0, 1):
        x = distribution("normal", 7 * 50).view(7, 50)
        x[1, 3], x[2, 4], x[3, 5] = float("nan"), float("inf"), -float("inf")
        x[4], x[5] = 0.7, 0.0
        x = x if axis == 0 else x.T.contiguous()
        reason = "NaN, infinities and constants each in a channel"
        yield Sample(reason, (x,), {**few, "axis": axis}, special=True)
    for value in (float("nan"), float("inf"), -float("inf"), 3e38):
        for count in (40, 9000):
            x = torch.linspace(-1, 2, count, dtype=torch.float32, device="cpu")
            x[3], x[4] = value, -3e38 if value == 3e38 else 0.0
            yield Sample(f"{value}", (x,), few, special=True)
    yield Sample(
        "all zero: the first of equal candidates wins", (torch.zeros_like(noise(5)),), special=True
    )


def losses(
    x: torch.Tensor, bits: int, candidates: int = 80, norm: float = 2.4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the candidates' shrink factors and their mean losses, summed in float64."""
    x = x.float().cpu()
    low, high = torch.aminmax(x)
    factors = torch.tensor(
        [1 - 0.01 * i for i in range(candidates)], dtype=torch.float32, device="cpu"
    )
    values = x.double().reshape(1, -1)
    means = []
    for some in factors.split(max(1, AT_ONCE // x.numel())):
        rows = values.expand(len(some), -1)
        errors = fake_quantize(rows, low * some, high * some, bits=bits, axis=0) - rows
        means.append(errors.abs().pow(norm).mean(1))
    return factors, torch.cat(means)


def excess(
    x: torch.Tensor,
    found: tuple[torch.Tensor, ...],
    bits: int = 4,
    candidates: int = 80,
    norm: float = 2.4,
) -> tuple[int, float]:
    """Returns which candidate was found, -1 for none, and its loss beyond the least, relative."""
    factors, means = losses(x, bits, candidates, norm)
    bounds = torch.aminmax(x.float().cpu())
    same = [bound * factors == value.cpu() for bound, value in zip(bounds, found, strict=True)]
    matching = (same[0] & same[1]).nonzero().flatten()
    if len(matching) == 0:
        return -1, float("inf")
    index = int(matching[means[matching].argmin()])
    least = float(means.min())
    if least == 0:
        return index, 0.0 if means[index] == 0 else float("inf")
    return index, float(means[index]) / least - 1


def judge(sample: Sample, found: tuple[torch.Tensor, ...]) -> str:
    """Asks each channel for the best candidate, or one as good; of infinities the whole range."""
    x, options = sample.tensors[0], dict(sample.options)
    axis = options.pop("axis", None)
    shape = () if axis is None else (x.shape[axis],)
    if [(value.shape, value.dtype) for value in found] != [(shape, torch.float32)] * 2:
        return f"{[(tuple(value.shape), value.dtype) for value in found]} instead of {shape}"
    channels = [x] if axis is None else x.unbind(axis)
    for index, channel in enumerate(channels):
        fault = _judge_channel(channel, tuple(v.reshape(-1)[index] for v in found), options)
        if fault:
            return fault if axis is None else f"channel {index}: {fault}"
    return ""


def _judge_channel(
    x: torch.Tensor, found: tuple[torch.Tensor, ...], options: dict[str, Any]
) -> str:
    if not x.isfinite().all():
        whole = tuple(torch.aminmax(x.float()))
        return "" if tuple(v.cpu() for v in found) == whole else f"{found} instead of {whole}"
    index, worse = excess(x, found, **options)
    if index < 0:
        return f"{[float(v) for v in found]} is none of the candidates"
    return "" if worse <= EXCESS else f"candidate {index} is worse than the best by {worse:g}"


CASE = OpCase(
    name="search_range",
    call=call,
    inputs=inputs,
    values=(EXACT, EXACT),
    judge=judge,
    bytes_moved=lambda sample: nbytes(sample.tensors[0]),
    variants=({"axis": 0}, {"axis": -1}),
)
