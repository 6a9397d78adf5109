"""What a grid of small floats means; the conformance suite compares the backends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synq_fast import ops, reference
from synq_fast.testing.cases._quantization import special_values
from tests.ops.backends import BACKENDS, assert_same, device, require  # noqa: F401

# Written out: the widths with little or no mantissa.
LEVELS = {
    3: [0, 1, 2, 4, 8, 16, 32, 64],
    4: [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192],
    5: [
        *(0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28),
        *(32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448),
    ],
}
WIDTHS = range(3, 9)


def levels_of(bits):
    """Floats of three exponent bits and no sign, the first octave with the spacing of the next."""
    count = 2 ** (bits - 3)
    octaves = [(count + f) * 2**e for e in range(7) for f in range(count)]
    return [*range(count), *octaves]


def nearest_levels(steps, bits):
    """The nearest levels in float64 by search, of two the one with the even code."""
    levels = torch.tensor(levels_of(bits), dtype=torch.float64, device=steps.device)
    distance = (steps.double()[:, None] - levels).abs()
    least = distance.min(1, keepdim=True).values
    codes = torch.arange(len(levels), device=steps.device)
    # Even codes first.
    return levels[((distance > least) * 4096 + (codes % 2) * 1024 + codes).argmin(1)]


@pytest.mark.parametrize("bits", WIDTHS)
def test_levels(device, bits):  # noqa: F811
    """Over a range as long as the levels are high a step is one, and all levels are reached."""
    levels = levels_of(bits)
    assert levels == LEVELS.get(bits, levels) and len(set(levels)) == 2**bits
    top = float(levels[-1])
    assert top == (2 ** (bits - 2) - 1) * 64
    exact = torch.tensor(levels, dtype=torch.float32, device=device)
    assert torch.equal(ops.fake_quantize_minifloat(exact, 0.0, top, bits), exact)
    x = torch.linspace(-3, top * 1.4, 60_001, device=device)
    found = ops.fake_quantize_minifloat(x, 0.0, top, bits)
    assert found.unique().tolist() == levels


@pytest.mark.parametrize("bits", WIDTHS[1:])
def test_ties_go_to_the_even_code(device, bits):  # noqa: F811
    levels = torch.tensor(levels_of(bits), dtype=torch.float32, device=device)
    middles = (levels[1:] + levels[:-1]) / 2
    found = ops.fake_quantize_minifloat(middles, 0.0, levels[-1].item(), bits)
    lower = torch.arange(len(middles), device=device) % 2 == 0
    assert torch.equal(found, torch.where(lower, levels[:-1], levels[1:]))


def test_ties_without_a_mantissa(device):  # noqa: F811
    """The multiples of half the upper level are halves of it, and round to two: up."""
    x = torch.tensor([0.5, 1.5, 3.0, 6.0, 12.0, 24.0, 48.0], device=device)
    assert ops.fake_quantize_minifloat(x, 0.0, 64.0, 3).tolist() == [0, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-0.17, 4.2), (-1.0, 1.5), (2.0, 5.0)])
def test_nearest_level(device, bits, low, high):  # noqa: F811
    """Of the float32 steps; the zero point is whole, so that levels plus it are."""
    x = torch.randn(5000, device=device) * 2
    half = torch.tensor(high, device=device) * 0.5 - torch.tensor(low, device=device) * 0.5
    scale = half.reciprocal() * (levels_of(bits)[-1] / 2)
    zero = torch.round(scale * low)
    level = nearest_levels(scale * x - zero, bits)
    expected = (level + zero.double()) / scale.double()
    found = ops.fake_quantize_minifloat(x, low, high, bits)
    torch.testing.assert_close(found.double(), expected, atol=1e-12, rtol=1.2e-7)


def test_gelu_keeps_zero_and_errs_less_than_with_equal_steps(device):  # noqa: F811
    x = torch.nn.functional.gelu(torch.randn(100_000, device=device))
    # The zero point is -8, and 8 is a level.
    low, high = -0.17, 0.17 * 23
    y = ops.fake_quantize_minifloat(x, low, high, 4)
    equal = ops.fake_quantize(x, low, high, 4)
    assert (y - x).abs().mean() < 0.6 * (equal - x).abs().mean()
    assert 0 in y.unique()


finite = st.floats(-1e4, 1e4, width=32)


@settings(deadline=None)
@given(
    values=st.lists(finite, min_size=1, max_size=200),
    bounds=st.tuples(finite, finite).map(sorted),
    bits=st.integers(3, 8),
)
def test_properties(values, bounds, bits):
    x = torch.tensor(values).sort().values
    low, high = bounds
    y = ops.fake_quantize_minifloat(x, low, high, bits)
    assert torch.equal(y, reference.fake_quantize_minifloat(x, low, high, bits))
    assert (y.diff() >= 0).all(), "not monotone"
    assert y.unique().numel() <= 2**bits
    # Near a level that float32 cannot tell from its neighbour a second pass may move on.
    if max(abs(low), abs(high)) < (high - low) * 2**6:
        again = ops.fake_quantize_minifloat(y, low, high, bits)
        assert torch.equal(again, y), "not idempotent"


@pytest.mark.parametrize(("backend", "target"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_special_values(backend, target, dtype):
    require(backend)
    x = special_values().to(dtype).to(target)
    ranges = [(-1.0, 1.0), (0.7, 0.7), (0.0, 0.0), (-1e38, 1e38), (float("nan"), 1.0), (0.0, 1e-12)]
    for low, high in [*ranges, (-float("inf"), 1.0), (0.0, float("inf"))]:
        with ops.backend(backend):
            y = ops.fake_quantize_minifloat(x, low, high, 4)
        assert y.dtype == dtype
        assert_same(y, reference.fake_quantize_minifloat(x, low, high, 4))
        assert y[x.isnan()].isnan().all()
    with ops.backend(backend):
        y = ops.fake_quantize_minifloat(x, 0.0, 2.0, 8)
    assert y[x == float("inf")].unique().item() == pytest.approx(2.0, rel=0.01)
    assert y[x == -float("inf")].unique().item() == 0.0


def test_channels(device):  # noqa: F811
    """Each channel is rounded as if it were alone."""
    x = torch.randn(3, 5, 40, device=device)
    low, high = torch.tensor([-2.0, -0.1, 0.0]), torch.tensor([1.0, 3.0, 0.5])
    low, high = low.to(device), high.to(device)
    y = ops.fake_quantize_minifloat(x, low, high, 4, axis=0)
    for channel in range(3):
        alone = ops.fake_quantize_minifloat(x[channel], low[channel], high[channel], 4)
        assert torch.equal(y[channel], alone)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_clipped_gradient(backend):
    require(backend)
    # Over [0, 192] with 4 bits steps are x: -0.5 rounds to 0, 224 to 256, of which 192 is left.
    values = [-1.0, -0.6, -0.5, 0.0, 192.0, 223.0, 224.0, 1e9, float("nan"), float("inf")]
    x = torch.tensor(values, requires_grad=True)
    with ops.backend(backend):
        ops.fake_quantize_minifloat(x, 0.0, 192.0, 4, ste="clip").sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 1, 0]


X, ZERO, ONE = torch.zeros(2, 3), torch.zeros(()), torch.ones(())


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([0.0], ZERO, ONE, 4), {}, TypeError, r"x must be a torch\.Tensor, got list"),
        ((X.double(), ZERO, ONE, 4), {}, TypeError, "x must be float32, float16 or bfloat16"),
        ((X, ZERO.double(), ONE, 4), {}, TypeError, "range_min must be float32"),
        ((X, "0", ONE, 4), {}, TypeError, "range_min must be a number or a float32 tensor"),
        ((X, ZERO, torch.ones(3), 4), {}, ValueError, "range_max must hold one value"),
        ((X, ONE, ZERO, 4), {}, ValueError, "range_min must not exceed range_max, got 1.0 > 0.0"),
        ((X, 1.0, 0.0, 4), {}, ValueError, "range_min must not exceed range_max, got 1.0 > 0.0"),
        ((X, ZERO, ONE, 2), {}, ValueError, "bits must be from 3 to 8, got 2"),
        ((X, ZERO, ONE, 9), {}, ValueError, "bits must be from 3 to 8, got 9"),
        ((X, ZERO, ONE, 4.0), {}, TypeError, "bits must be an int from 3 to 8, got 4.0"),
        ((X, 0.0, 1.0, 4), {"axis": 2}, IndexError, "axis 2 is out of range"),
        ((X, ZERO, ONE, 4), {"ste": "none"}, ValueError, 'ste must be "identity" or "clip"'),
    ],
)
def test_bad_arguments(backend, arguments, options, error, message):
    with ops.backend(backend), pytest.raises(error, match=message):
        ops.fake_quantize_minifloat(*arguments, **options)


def test_registered_op_checks_for_itself():
    op = torch.ops.synq_fast.fake_quantize_minifloat
    for bits in (2, 9):
        with pytest.raises(ValueError, match=r"bits (is not|must be)"):
            op(X, ZERO, ONE, bits, None, False)
        with pytest.raises(ValueError, match=r"bits (is not|must be)"):
            torch.ops.synq_fast.fake_quantize_minifloat_backward(X, X, ZERO, ONE, bits, None)
