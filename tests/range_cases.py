"""Inputs of the range ops, and the oracle of the range search."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from synq_fast import reference

# Two candidates whose losses differ by less than this, relative to the least, are as good.
TOLERANCE = 1e-5

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

SIZES = {
    1: "one element",
    17: "less than any vector or block, odd",
    257: "one more than the CPU's partial sums",
    4096: "one tile exactly",
    4097: "one element beyond it",
    16400: "first size too large for one Triton program that updates a range",
    33000: "more than one thread's share",
}


def distribution(name: str, count: int, seed: int = 0) -> torch.Tensor:
    """Returns `count` float32 values, each kind a way for a search to go wrong."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator)
    match name:
        case "normal":
            return x
        case "relu":  # half of it one value, the range's end
            return x.relu()
        case "cubed":  # heavy tails
            return x**3
        case "cauchy":  # most of the range is empty
            return x / torch.randn(count, generator=generator)
        case "constant":
            return torch.full((count,), 0.7)
        case "two points":  # no error at all with the whole range
            return torch.where(x > 0.5, 1.8, -1.2)
        case "integers":  # many values on the edges of histograms and of levels
            return (x * 4).round()
        case "outlier":  # the rest lies in a single bin of a histogram
            x[-1] = 1e3
            return x
        case "far from zero":
            return x / 8 + 100
        case "subnormal errors":
            return x * 1e-9
        case "overflowing errors":  # |error|^2.4 exceeds float32
            return x * 1e20
    raise ValueError(name)


DISTRIBUTIONS = (
    "normal",
    "relu",
    "cubed",
    "cauchy",
    "constant",
    "two points",
    "integers",
    "outlier",
    "far from zero",
    "subnormal errors",
    "overflowing errors",
)


def losses(
    x: torch.Tensor, bits: int, candidates: int = 80, norm: float = 2.4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the candidates' shrink factors and their mean losses, summed in float64."""
    x = x.float().cpu()
    low, high = torch.aminmax(x)
    factors = torch.tensor([1 - 0.01 * i for i in range(candidates)])
    means = [
        (reference.fake_quantize(x, low * factor, high * factor, bits).double() - x.double())
        .abs()
        .pow(norm)
        .mean()
        for factor in factors
    ]
    return factors, torch.stack(means)


class Choice(NamedTuple):
    """What a search chose, and how much worse than the best that is, relative to the best."""

    index: int
    excess: float


def judge(
    x: torch.Tensor,
    found: tuple[torch.Tensor, torch.Tensor],
    bits: int,
    candidates: int = 80,
    norm: float = 2.4,
) -> Choice:
    """Finds the candidate that `found` is, and what it loses."""
    factors, means = losses(x, bits, candidates, norm)
    bounds = torch.aminmax(x.float().cpu())
    same = [(bound * factors == value.cpu()) for bound, value in zip(bounds, found, strict=True)]
    matching = (same[0] & same[1]).nonzero().flatten()
    assert len(matching) > 0, f"{found} is none of the candidates"
    index = int(matching[means[matching].argmin()])
    least = means.min()
    if least == 0:
        return Choice(index, 0.0 if means[index] == 0 else float("inf"))
    return Choice(index, float((means[index] - least) / least))


def assert_best(
    x: torch.Tensor,
    found: tuple[torch.Tensor, torch.Tensor],
    bits: int,
    candidates: int = 80,
    norm: float = 2.4,
) -> None:
    """Asserts that `found` is the best candidate, or one that is as good within the tolerance."""
    choice = judge(x, found, bits, candidates, norm)
    assert choice.excess <= TOLERANCE, f"candidate {choice.index} is worse by {choice.excess:g}"


def search_cases() -> Iterator[tuple[str, torch.Tensor, int]]:
    """Yields small inputs for the slow ways of running kernels, and a number of bits."""
    for name in DISTRIBUTIONS:
        yield name, distribution(name, 300), 4
    for bits in (2, 8, 9, 16):
        yield f"{bits} bits", distribution("cubed", 600), bits
    for size in (1, 2, 17):
        yield f"size {size}", distribution("normal", size), 3
