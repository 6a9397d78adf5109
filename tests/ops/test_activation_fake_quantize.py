"""What activation functions with fake quantization mean; conformance compares the backends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from synq_fast import ops
from tests.ops.backends import device  # noqa: F401  (a fixture)

FUSED = {
    functional.gelu: ops.gelu_fake_quantize,
    functional.silu: ops.silu_fake_quantize,
    functional.hardswish: ops.hardswish_fake_quantize,
}
LEAST = {functional.gelu: -0.17, functional.silu: -0.2785, functional.hardswish: -0.375}
pytestmark = pytest.mark.parametrize("function", FUSED, ids=lambda f: f.__name__)


def run(op, x, scale, zero_point, bits, gradient, **options):
    leaves = [value.detach().clone().requires_grad_() for value in (x, scale, zero_point)]
    y = op(*leaves, bits, **options)
    y.backward(gradient)
    return y.detach(), *(leaf.grad for leaf in leaves)


def separate(function):
    def op(x, scale, zero_point, bits, **options):
        return ops.fake_quantize_learned(function(x), scale, zero_point, bits, **options)

    return op


BY_HAND = {
    # x * P(x) is 0, 0.57890, 1.95450, 9, -0.16997 and 0.
    functional.gelu: [0.0, 0.5, 1.75, 1.75, -0.25, 0.0],
    # x * sigmoid(x) is 0, 0.50938, 1.76159, 8.99889, -0.24061 and -0.00111.
    functional.silu: [0.0, 0.5, 1.75, 1.75, -0.25, 0.0],
    # x * clamp(x + 3, 0, 6) / 6 is 0, 0.46875, 1.66667, 9, -0.28125 and 0.
    functional.hardswish: [0.0, 0.5, 1.75, 1.75, -0.25, 0.0],
}
FLOATS_BY_HAND = {
    # Steps are 0, 5.789, 19.545, 90, -1.700 and 0; the zero point of -2 adds two to them.
    functional.gelu: [0.0, 0.6, 2.2, 9.4, -0.2, 0.0],
    # 0, 5.094, 17.616, 89.989, -2.406 and -0.011.
    functional.silu: [0.0, 0.6, 1.4, 9.4, -0.2, 0.0],
    # 0, 4.6875, 16.667, 90, -2.8125 and 0.
    functional.hardswish: [0.0, 0.4, 1.4, 9.4, -0.2, 0.0],
}


def test_by_hand(device, function):  # noqa: F811
    x = torch.tensor([0.0, 0.75, 2.0, 9.0, -0.75, -9.0], device=device)
    # Codes end at 7.
    assert FUSED[function](x, 4.0, 0.0, 4).tolist() == BY_HAND[function]


def test_small_floats_by_hand(device, function):  # noqa: F811
    x = torch.tensor([0.0, 0.75, 2.0, 9.0, -0.75, -9.0], device=device)
    # Levels are 0 1 2 3 4 6 8 12 16 24 32 48 64 96.
    y = FUSED[function](x, 10.0, -2.0, 4, grid="minifloat")
    torch.testing.assert_close(y.cpu(), torch.tensor(FLOATS_BY_HAND[function]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_beside_torch(device, function, bits):  # noqa: F811
    """The values, and gradients but those at codes that rounding turned."""
    x, gradient = torch.randn(2, 8, 197, 48, device=device).mul(1.5).unbind()
    scale = torch.tensor((2**bits - 1) / 2.5, device=device)
    zero_point = torch.tensor(2.0 ** (bits - 1) - 0.6, device=device)
    arguments = x, scale, zero_point, bits, gradient
    mine = run(FUSED[function], *arguments, gradient_scale=0.5)
    theirs = run(separate(function), *arguments, gradient_scale=0.5)
    turned = (mine[0] != theirs[0]) | ((mine[1] == 0) != (theirs[1] == 0))
    assert turned.sum() <= x.numel() * 2**bits * 5e-7 + 2
    torch.testing.assert_close(mine[0], theirs[0], atol=1.001 / scale.item(), rtol=0)
    torch.testing.assert_close(mine[1][~turned], theirs[1][~turned], atol=1e-6, rtol=1e-5)
    # A turned code changes a sum by one term; a sum of terms of either sign is some hundreds.
    bound = 1e-5 * x.numel() / scale.item() ** 2 + 4 * turned.sum().item() / scale.item() ** 2
    for ours, expected in zip(mine[2:], theirs[2:], strict=True):
        assert abs(ours - expected) <= bound + 1e-4 * abs(expected)
        assert expected != 0


@pytest.mark.parametrize("bits", range(3, 9))
def test_small_floats_are_those_of_their_op(device, function, bits):  # noqa: F811
    """The composition, both ways, but where rounding turned a level."""
    x, gradient = torch.randn(2, 9, 197, 31, device=device).mul(2).unbind()
    # Not far below zero: where zero itself is a tie, all that is nearly zero is turned.
    x = x.abs() - 1.5
    low, high = torch.tensor([LEAST[function] - 0.03, 4.0], device=device)
    # In the arithmetic of that op.
    scale = 1 / (high - low) * float((2 ** (bits - 2) - 1) * 64)
    zero_point = torch.round(scale * low)
    y, of_x, *_ = run(FUSED[function], x, scale, zero_point, bits, gradient, grid="minifloat")
    leaf = x.clone().requires_grad_()
    expected = ops.fake_quantize_minifloat(function(leaf), low, high, bits, ste="clip")
    expected.backward(gradient)
    turned = (y != expected) | ((of_x == 0) != (leaf.grad == 0))
    assert turned.sum() <= x.numel() * 2**bits * 5e-7 + 2
    torch.testing.assert_close(of_x[~turned], leaf.grad[~turned], atol=1e-6, rtol=1e-5)
    assert (leaf.grad == 0).any() and y.unique().numel() > 2 ** (bits - 1)


@pytest.mark.parametrize("zero_point", [-20.3, 0.4])
def test_gradients_of_small_floats_are_straight_through(device, function, zero_point):  # noqa: F811
    """Rounding passes gradients on, in float64 by autograd; the levels are as given."""
    x, gradient = torch.randn(2, 3000, device=device).mul(3).unbind()
    scale, zero = (torch.tensor(v, device=device) for v in (40.0, zero_point))
    options = {"grid": "minifloat", "gradient_scale": 0.5}
    found = run(FUSED[function], x, scale, zero, 4, gradient, **options)
    leaves = [v.double().requires_grad_() for v in (x, scale, zero)]
    values, factor, offset = function(leaves[0]), *leaves[1:]
    whole = offset + (offset.round() - offset).detach()
    steps = factor * values - whole
    level = (found[0].double() * 40).round() - whole.detach()
    inside = (steps > -0.5) & (steps < 192 + 32)
    assert (~inside & (steps < 0)).any() == (zero_point > 0) and (steps > 224).any()
    rounded = torch.where(inside, steps + (level - steps).detach(), level)
    y = (rounded + whole) / factor
    expected = torch.autograd.grad(y, leaves, gradient.double())
    torch.testing.assert_close(found[1].double(), expected[0], atol=2e-6, rtol=1e-5)
    for mine, theirs in zip(found[2:], expected[1:], strict=True):
        assert theirs != 0
        torch.testing.assert_close(mine.double(), 0.5 * theirs, atol=1e-5, rtol=1e-4)


def test_the_lowest_value_takes_one_code(device, function):  # noqa: F811
    x = torch.linspace(-12, 12, 4001, device=device)
    y = FUSED[function](x, 3.5, 7.0, 4)
    assert y.min() == pytest.approx(-1 / 3.5) and y.max() == pytest.approx(14 / 3.5)
    assert y.unique().numel() == 16


def test_tails_end(device, function):  # noqa: F811
    """A fine grid sees neither noise far below zero nor a slope other than the derivative."""
    x = torch.linspace(-30, 30, 4001, device=device, requires_grad=True)
    y = FUSED[function](x, 256.0, 0.0, 16)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (y[x < -10] == 0).all() and (slope[x < -25].abs() < 1e-9).all()
    wide = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(function(wide).sum(), wide)
    # PyTorch's derivative of a sigmoid takes it from 1, of which few digits are left.
    atol = 2e-6 if function is functional.silu else 5e-7
    torch.testing.assert_close(slope.double(), expected, atol=atol, rtol=0)


@pytest.mark.parametrize(
    "value", [-3.0, 3.0, -2.9999998, 2.9999998, -200.0, 0.0, torch.inf, -torch.inf]
)
def test_ends_are_those_of_torch(device, function, value):  # noqa: F811
    """Values and slopes where functions begin and end, and at infinities."""
    x = torch.full((70,), value, device=device, requires_grad=True)
    y = FUSED[function](x, 16.0, 30000.0, 16)
    (slope,) = torch.autograd.grad(y.sum(), x)
    wide = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    expected = function(wide)
    (theirs,) = torch.autograd.grad(expected, wide)
    if value == torch.inf:
        # It is clamped, and the gradient of that is zero; times a slope of NaN it is NaN.
        assert y.isfinite().all() and bool(slope.isfinite().all()) == theirs.isfinite()
        return
    assert y.isnan().all() if expected.isnan() else y.isfinite().all()
    torch.testing.assert_close(
        slope.double().cpu(), theirs.expand(70), atol=1e-6, rtol=0, equal_nan=True
    )


def test_nan_is_passed_on(device, function):  # noqa: F811
    for grid in ("uniform", "minifloat"):
        x = torch.full((70,), torch.nan, device=device, requires_grad=True)
        y = FUSED[function](x, 16.0, 0.0, 8, grid=grid)
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert y.isnan().all() and slope.isnan().all()


def test_half_types_keep_their_type(device, function):  # noqa: F811
    x = torch.randn(64, device=device)
    for grid, pair in (("uniform", (6.0, 7.0)), ("minifloat", (40.0, -7.0))):
        for dtype in (torch.float16, torch.bfloat16):
            half = x.to(dtype)
            y = FUSED[function](half, *pair, 4, grid=grid)
            assert y.dtype == dtype
            wide = FUSED[function](half.float(), *pair, 4, grid=grid)
            assert torch.equal(y, wide.to(dtype))


@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), max_size=40),
    scale=st.floats(0.0078125, 1024, width=32),
    zero_point=st.floats(-512, 512, width=32),
    bits=st.integers(3, 8),
    grid=st.sampled_from(["uniform", "minifloat"]),
)
def test_what_comes_out_is_the_nearest_of_the_grid(function, values, scale, zero_point, bits, grid):
    x = torch.tensor(values)
    y = FUSED[function](x, scale, zero_point, bits, grid=grid)
    codes = torch.arange(2**bits).double()
    if grid == "minifloat":
        exponent, mantissa = (
            codes.div(2 ** (bits - 3), rounding_mode="floor"),
            codes % 2 ** (bits - 3),
        )
        normal = (2 ** (bits - 3) + mantissa) * torch.exp2(exponent - 1)
        levels = torch.where(exponent == 0, mantissa, normal)
    else:
        levels = codes - 2 ** (bits - 1)
    levels = (levels + round(zero_point)) / scale
    wanted = function(x.double())
    nearest = (wanted.view(-1, 1) - levels).abs().amin(1)
    torch.testing.assert_close(
        (y.double().view(-1, 1) - levels).abs().amin(1),
        torch.zeros(len(values)).double(),
        atol=1e-6 * float(levels.abs().max() + 1),
        rtol=0,
    )
    slack = 1e-6 * (wanted.abs() + levels.abs().max() + 1)
    assert ((y.double() - wanted).abs() <= nearest + slack).all()


X, ONE = torch.zeros(3), torch.ones(())


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([0.0], ONE, ONE, 4), {}, TypeError, r"x must be a torch\.Tensor, got list"),
        ((X.double(), ONE, ONE, 4), {}, TypeError, "x must be float32, float16 or bfloat16"),
        ((X, ONE.double(), ONE, 4), {}, TypeError, "scale must be float32"),
        ((X, ONE, "0", 4), {}, TypeError, "zero_point must be a number or a float32 tensor"),
        ((X, torch.ones(3), ONE, 4), {}, ValueError, "scale must hold one value"),
        ((X, -ONE, ONE, 4), {}, ValueError, "scale must be positive, got -1.0"),
        ((X, ONE, ONE, 17), {}, ValueError, "bits must be from 2 to 16, got 17"),
        ((X, ONE, ONE, 4.0), {}, TypeError, "bits must be an int"),
        ((X, ONE, ONE, 2), {"grid": "minifloat"}, ValueError, "bits must be from 3 to 8, got 2"),
        ((X, ONE, ONE, 9), {"grid": "minifloat"}, ValueError, "bits must be from 3 to 8, got 9"),
        (
            (X, ONE, ONE, 4),
            {"grid": "log2"},
            ValueError,
            'grid must be "uniform" or "minifloat", got \'log2\'',
        ),
    ],
)
def test_bad_arguments(function, backend, arguments, options, error, message):
    with ops.backend(backend), pytest.raises(error, match=message):
        FUSED[function](*arguments, **options)


@pytest.mark.parametrize(
    ("activation", "bits", "minifloat"),
    [(3, 4, False), (-1, 4, False), (0, 2, True), (0, 9, True), (0, 17, False)],
)
def test_the_registered_op_checks_too(function, activation, bits, minifloat):
    op = torch.ops.synq_fast.activation_fake_quantize
    with pytest.raises((ValueError, RuntimeError), match=r"activation|bits"):
        op(X, ONE, ONE, activation, bits, minifloat, 1.0)


def test_hard_swish_has_the_same_bits_everywhere(device, function):  # noqa: F811
    if function is not functional.hardswish:
        pytest.skip("exponentials are rounded differently")
    x = torch.randn(5000, device=device).mul(3)
    values = x * (x + 3).clamp(0, 6) * (1 / 6)
    y = ops.hardswish_fake_quantize(x, 6000.0, 0.0, 16)
    assert torch.equal(y, ops.fake_quantize_learned(values, 6000.0, 0.0, 16))
