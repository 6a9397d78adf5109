"""Widths by integer programming, beside every combination there is."""

import itertools
import math
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synq_fast.errors import ArgumentError, MissingExtraError
from synq_fast.quant.allocation import allocate, averages, choose
from synq_fast.quant.sensitivity import Measured, Sensitivity
from synq_fast.quant.widths import Widths

WIDTHS = range(2, 9)
PARTS = st.lists(
    st.tuples(
        st.sampled_from([1, 16, 432, 2304, 36864, 2359296]),
        st.floats(-6, 1),
        st.lists(st.floats(0.3, 3), min_size=7, max_size=7),
        st.sampled_from([WIDTHS, range(3, 6), range(8, 9), range(2, 3)]),
    ),
    min_size=1,
    max_size=4,
)
AVERAGES = st.integers(200, 800).map(lambda hundredths: hundredths / 100)


def used(sizes, widths) -> int:
    return sum(size * bits for size, bits in zip(sizes, widths, strict=True))


def cost(losses, widths) -> float:
    return math.fsum(own[bits] for own, bits in zip(losses, widths, strict=True))


@settings(max_examples=60, deadline=None)
@given(PARTS, AVERAGES)
def test_no_combination_costs_less(parts, average):
    sizes = [size for size, *_ in parts]
    losses = [
        {bits: 10**scale * 4.0**-bits * noise[bits - 2] for bits in widths}
        for _, scale, noise, widths in parts
    ]
    budget = Fraction(str(average)) * sum(sizes)
    fitting = [w for w in itertools.product(*losses) if used(sizes, w) <= budget]
    if not fitting:
        with pytest.raises(ArgumentError, match="out of reach: the least is"):
            allocate(losses, sizes, average)
        return
    found = allocate(losses, sizes, average)
    assert tuple(found) in fitting
    assert cost(losses, found) <= min(cost(losses, w) for w in fitting) * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(PARTS, AVERAGES)
def test_what_is_left_of_the_average_raises_no_width(parts, average):
    sizes = [size for size, *_ in parts]
    losses = [{bits: 10**scale * 4.0**-bits for bits in WIDTHS} for _, scale, *_ in parts]
    found = allocate(losses, sizes, average)
    left = Fraction(str(average)) * sum(sizes) - used(sizes, found)
    assert left >= 0
    assert all(size > left for size, bits in zip(sizes, found, strict=True) if bits < 8)


def test_averages_that_can_be_met_are_met_exactly():
    losses = [{bits: k * 4.0**-bits for bits in WIDTHS} for k in (5.0, 1.0, 0.1)]
    for average in range(2, 9):
        assert used([10, 10, 10], allocate(losses, [10, 10, 10], average)) == 30 * average
    # 3.1 is no binary fraction: 31 bits for ten parts of one element.
    tenfold = [{bits: (i + 1) * 4.0**-bits for bits in WIDTHS} for i in range(10)]
    assert used([1] * 10, allocate(tenfold, [1] * 10, 3.1)) == 31


def test_many_large_layers():
    sizes = [1000 + 7919 * i % 2_000_000 for i in range(120)]
    losses = [{b: (1 + i * 37 % 101) * 3.7**-b for b in WIDTHS} for i in range(120)]
    found = allocate(losses, sizes, 3.0)
    assert 2.999 <= used(sizes, found) / sum(sizes) <= 3.0
    assert cost(losses, found) < 0.95 * cost(losses, [3] * 120)


def test_quantizers_without_effect_and_none_at_all():
    assert allocate([], [], 4.0) == []
    assert allocate([dict.fromkeys(WIDTHS, 0.0)] * 2, [5, 7], 4.0) == [2, 2]


def measured(kind: str, losses: dict[str, float], size: int = 10) -> list[Measured]:
    return [
        Measured(name, kind, size, {bits: loss * 4.0**-bits for bits in WIDTHS})
        for name, loss in losses.items()
    ]


def test_weights_and_activations_have_averages_of_their_own():
    quantizers = (
        *measured("weights", {"a": 100.0, "b": 0.01}),
        *measured("activations", {"quantize_a": 0.01, "quantize_b": 100.0}, 999),
        Measured("quantize_x", "image", 5000, {8: 0.1}),
    )
    found = Sensitivity("net", "recipe", 0, 4, quantizers)
    low, high = (
        Widths({"a": bits, "b": bits}, {"quantize_a": bits, "quantize_b": bits}) for bits in (2, 8)
    )
    chosen = choose(found, 4.0, low, high)
    assert chosen == Widths({"a": 6, "b": 2}, {"quantize_a": 2, "quantize_b": 6})
    assert averages(quantizers, chosen) == {"weights": 4.0, "activations": 4.0}
    # What a recipe fixes stays, and counts.
    fixed = choose(found, 4.0, Widths({"a": 2, "b": 5}, low.activations), high)
    assert fixed.weights == {"a": 3, "b": 5}


def test_without_scipy_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError, match=r'pip install "synq-fast\[auto\]"'):
        allocate([{2: 1.0}], [1], 4.0)
