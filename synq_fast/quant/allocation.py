"""Widths of a given average that cost least: a knapsack of one width for each quantizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from torch import fx

from synq_fast.errors import ArgumentError, RecipeError, SynqFastError
from synq_fast.quant.sensitivity import ACTIVATIONS, WEIGHTS, Part, Sensitivity, parts_of
from synq_fast.quant.widths import Widths, widths_of
from synq_fast.runtime.extras import needs

# HiGHS takes costs that differ by 1e-6 for equal, and bounds that are passed by 1e-6 for kept.
_LARGEST_COST = 1e4
_LARGEST_SCALE = 1e5


def allocate(
    losses: Sequence[Mapping[int, float]], sizes: Sequence[int], average: float
) -> list[int]:
    """One width for each part, so that the summed loss is least at no more than ``average`` bits.

    The integer program of HAWQ-V3 (arXiv 2011.10680) with a bound on the size alone:
    minimize the sum of ``loss[i][b] x[i, b]`` over binary x with one width for each i and
    ``sum size[i] b x[i, b] <= average sum size[i]``. Solved to the optimum by HiGHS.

    Args:
        losses: of each part by the widths that it may have.
        sizes: elements of each part.
        average: bits for each element.

    Raises:
        ArgumentError: the least widths already have a higher average.
        RecipeError: SciPy is not installed.
        SynqFastError: SciPy finds no solution.
    """
    optimize, sparse = _solver()
    budget = math.floor(Fraction(str(average)) * sum(sizes))
    widths = [min(own) for own in losses]
    if (least := _used(sizes, widths)) > budget:
        raise ArgumentError(
            f"an average of {average} bits is out of reach: the least is {least / sum(sizes):.4g}"
        )
    widths = _raised(losses, sizes, widths, budget)
    variables = _worthwhile(losses, widths)
    parts, columns = [i for i, _ in variables], range(len(variables))
    largest = max((losses[i][b] - min(losses[i].values()) for i, b in variables), default=0.0)
    if largest == 0:
        return widths
    scale = min(max(sizes), _LARGEST_SCALE)
    found = optimize.milp(
        [
            (losses[i][bits] - min(losses[i].values())) / largest * _LARGEST_COST
            for i, bits in variables
        ],
        integrality=[1] * len(variables),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(
                sparse.csr_array(([1.0] * len(parts), (parts, columns))), 1, 1
            ),
            optimize.LinearConstraint(
                [[sizes[i] * bits / scale for i, bits in variables]], ub=(budget + 0.5) / scale
            ),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.status == 0:
        taken = [variable for x, variable in zip(found.x, variables, strict=True) if x > 0.5]
        solved = _raised(losses, sizes, [bits for _, bits in sorted(taken)], budget)
        if _used(sizes, solved) <= budget:
            # What the solver takes for equal may cost a little more.
            return min(solved, widths, key=lambda each: _cost(losses, each))
    raise SynqFastError(
        f"SciPy has not found the widths of an average of {average} bits: {found.message}"
    )


def _used(sizes: Sequence[int], widths: Sequence[int]) -> int:
    return sum(size * bits for size, bits in zip(sizes, widths, strict=True))


def _cost(losses: Sequence[Mapping[int, float]], widths: Sequence[int]) -> float:
    return math.fsum(own[bits] for own, bits in zip(losses, widths, strict=True))


def _raised(
    losses: Sequence[Mapping[int, float]], sizes: Sequence[int], widths: Sequence[int], budget: int
) -> list[int]:
    """The widths after every step up that lowers the loss and fits, the most efficient first."""
    widths, left = list(widths), budget - _used(sizes, widths)
    while True:
        steps = [
            ((own[now] - own[bits]) / (size * (bits - now)), i, bits)
            for i, (own, size, now) in enumerate(zip(losses, sizes, widths, strict=True))
            for bits in own
            if bits > now and own[bits] < own[now] and size * (bits - now) <= left
        ]
        if not steps:
            return widths
        _, i, bits = max(steps)
        left -= sizes[i] * (bits - widths[i])
        widths[i] = bits


def _worthwhile(
    losses: Sequence[Mapping[int, float]], widths: Sequence[int]
) -> list[tuple[int, int]]:
    """The parts and their widths that can belong to a solution as good as these widths.

    Without the others costs are of one order, which the solver's tolerances ask for.
    """
    spare = math.fsum(
        own[bits] - min(own.values()) for own, bits in zip(losses, widths, strict=True)
    )
    return [
        (i, bits)
        for i, own in enumerate(losses)
        for bits in own
        if own[bits] - min(own.values()) <= spare * (1 + 1e-9)
    ]


def choose(sensitivity: Sensitivity, average: float, lowest: Widths, highest: Widths) -> Widths:
    """The widths of a network for an average of bits per weight and per activation element.

    Args:
        sensitivity: what each quantizer costs.
        average: of the weights, and of the activations; the image does not count.
        lowest: the least that each quantizer may have.
        highest: the most.

    Raises:
        ArgumentError: as ``allocate``.
        RecipeError: as ``allocate``.
    """

    def widths(kind: str, low: Mapping[str, int], high: Mapping[str, int]) -> dict[str, int]:
        parts = sensitivity.of(kind)
        losses = [
            {bits: p.losses[bits] for bits in range(low[p.name], high[p.name] + 1)} for p in parts
        ]
        found = allocate(losses, [part.size for part in parts], average)
        return {part.name: bits for part, bits in zip(parts, found, strict=True)}

    return Widths(
        widths(WEIGHTS, lowest.weights, highest.weights),
        widths(ACTIVATIONS, lowest.activations, highest.activations),
    )


def averages(parts: Sequence[Part], widths: Widths) -> dict[str, float]:
    """Bits of the mean weight and of the mean element of an activation; the image does not count.

    Args:
        parts: of the network.
        widths: of its quantizers.
    """
    found = {}
    for kind, bits in ((WEIGHTS, widths.weights), (ACTIVATIONS, widths.activations)):
        own = [part for part in parts if part.kind == kind]
        if own:
            used = sum(part.size * bits[part.name] for part in own)
            found[kind] = used / sum(part.size for part in own)
    return found


def check_average(student: fx.GraphModule, average: float) -> None:
    """Refuse an average that cannot be found, before the work that finding it takes.

    Args:
        student: the network at the least widths that it may have.
        average: bits of the mean weight, and of the mean element of an activation.

    Raises:
        RecipeError: the average is out of reach, or SciPy is not installed.
    """
    _solver()
    for kind, least in averages(parts_of(student), widths_of(student)).items():
        if least > average:
            raise RecipeError(
                f"auto:{average} is out of reach: with the widths that quantization.end_bits and "
                f"quantization.layer_bits fix, the {kind} have at least {least:.4g} bits on average"
            )


def _solver() -> tuple[Any, Any]:
    needs("auto", 'bits="auto:..."')
    from scipy import optimize, sparse

    return optimize, sparse
