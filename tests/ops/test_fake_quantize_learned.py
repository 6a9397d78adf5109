"""Values of a learned grid and its straight-through gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synq_fast import ops, reference
from tests.ops.backends import require
from tests.tolerances import assert_close


def oracle(x, scale, zero_point, bits, gradient, axis=None, gradient_scale=1.0):
    """Returns the three gradients in float64, from the definition alone."""
    shape = [1] * x.ndim
    if axis is not None:
        shape[axis] = -1
    x, s, g = x.double(), scale.double().reshape(shape), gradient.double()
    z = zero_point.double().round().reshape(shape)
    half = 2 ** (bits - 1)
    # Where float32 and float64 disagree on a tie, the definition is that of float32.
    codes = torch.round(scale.reshape(shape) * x.float() - z.float()).double()
    q = codes.clamp(-half, half - 1)
    y, clipped = (q + z) / s, codes != q
    of_scale = g * torch.where(clipped, -y, x - y) / s
    of_zero = torch.where(clipped, g, 0.0) / s
    of_x = torch.where(clipped, 0.0, g)
    sums = (terms.sum_to_size(s.shape) * gradient_scale for terms in (of_scale, of_zero))
    return of_x, *(total.reshape(scale.shape) for total in sums)


def run(function, x, scale, zero_point, bits, gradient, **options):
    leaves = [value.detach().clone().requires_grad_() for value in (x, scale, zero_point)]
    y = function(*leaves, bits, **options)
    y.backward(gradient)
    return y.detach(), *(leaf.grad for leaf in leaves)


def assert_close_sums(actual, wanted, scale, zero_point, elements):
    """Compares the parameters' gradients in units of what a code's rounding errors do to them."""
    unit = (8 + zero_point.abs().double()) / scale.double().square()
    for mine, theirs in zip(actual, wanted, strict=True):
        count = max(elements / max(scale.numel(), 1), 1)
        assert_close((mine / unit).cpu(), (theirs / unit).cpu(), "learned_gradient", factor=count)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradients_by_hand(backend):
    require(backend)
    # scale 2, zero point round(0.6) = 1: codes round(2x - 1) in [-8, 7], values from -3.5 to 4.
    x = torch.tensor([0.3, 10.0, -10.0, float("nan"), float("inf")], requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)
    zero_point = torch.tensor(0.6, requires_grad=True)
    with ops.backend(backend):
        y = ops.fake_quantize_learned(x, scale, zero_point, 4, gradient_scale=0.25)
        first, _ = torch.autograd.grad(
            y[:3] @ torch.ones(3), (scale, zero_point), retain_graph=True
        )
    assert y[:3].tolist() == [0.5, 4.0, -3.5] and y[4] == 4.0
    # The NaN is in range: its gradient times zero is NaN, and the sum of its channel with it.
    assert first.isnan()
    with ops.backend(backend):
        y = ops.fake_quantize_learned(x[:3], scale, zero_point, 4, gradient_scale=0.25)
    of_x, of_scale, of_zero = torch.autograd.grad(y.sum(), (x, scale, zero_point))
    assert of_x.tolist() == [1, 0, 0, 0, 0]
    assert of_scale.item() == pytest.approx(0.25 * ((0.3 - 0.5) / 2 - 4 / 2 + 3.5 / 2))
    assert of_zero.item() == 0.25 * (1 / 2 + 1 / 2)


finite = st.floats(-100, 100, width=32)


@given(
    values=st.lists(finite, min_size=1, max_size=200),
    scale=st.floats(2**-6, 2**6, width=32),
    zero=st.floats(-100, 100, width=32),
    bits=st.integers(2, 16),
)
def test_properties(values, scale, zero, bits):
    x = torch.tensor(values)
    arguments = x, torch.tensor(scale), torch.tensor(zero), bits, torch.ones_like(x)
    actual = run(ops.fake_quantize_learned, *arguments)
    expected = run(reference.fake_quantize_learned, *arguments)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
    largest = max(map(abs, values)) * scale
    assert_close_sums(
        actual[2:], oracle(*arguments)[1:], arguments[1], arguments[2].abs() + largest, x.numel()
    )


def test_long_sums_are_accurate():
    require("cpu")
    x = torch.rand(2_000_000) * 0.1
    pair = torch.tensor(7.0), torch.tensor(0.0)
    gradient = torch.rand_like(x) + 0.5
    actual = run(ops.fake_quantize_learned, x, *pair, 4, gradient)
    torch.testing.assert_close(
        actual[2].double(), oracle(x, *pair, 4, gradient)[1], rtol=2e-7, atol=0
    )


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_scale_must_be_positive(backend):
    require(backend)
    x = torch.zeros(2, 3)
    with ops.backend(backend):
        for scale in (0.0, -1.0, torch.tensor(-1.0)):
            with pytest.raises(ValueError, match=r"scale must be positive, got -?[01]"):
                ops.fake_quantize_learned(x, scale, 0.0, 4)
        with pytest.raises(ValueError, match="in channel 1"):
            ops.fake_quantize_learned(x, torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3), 4, axis=1)
        with pytest.raises(ValueError, match=r"zero_point must have shape \(3,\)"):
            ops.fake_quantize_learned(x, torch.ones(3), torch.zeros(2), 4, axis=1)
        with pytest.raises(TypeError, match="scale must be float32"):
            ops.fake_quantize_learned(x, torch.ones((), dtype=torch.float64), 0.0, 4)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_dropped_by_hand(backend):
    require(backend)
    # The first words of the seed 0 are 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
    x = torch.tensor([0.3, 0.3, 10.0, float("nan")], requires_grad=True)
    pair = torch.tensor(2.0, requires_grad=True), torch.tensor(0.6, requires_grad=True)
    for keep, rounded in ((0.3, 0), (0.4, 1), (0.7, 2), (0.8, 3), (0.9, 4)):
        chosen = torch.tensor([keep > word / 2**32 for word in FIRST_WORDS])
        assert chosen.sum() == rounded
        with ops.backend(backend):
            y = ops.fake_quantize_learned(x, *pair, 4, keep=keep, seed=0)
        quantized = torch.tensor([0.5, 0.5, 4.0, float("nan")])
        expected = torch.where(chosen, quantized, x.detach())
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
        of_x, of_scale, of_zero = torch.autograd.grad(y.sum(), (x, *pair))
        assert of_x.tolist() == [1, 1, 0 if chosen[2] else 1, 1]
        assert of_zero.item() == (0.5 if chosen[2] else 0)
        terms = torch.tensor([-0.1, -0.1, -2.0, float("nan")])
        wanted = torch.where(chosen, terms, 0.0).sum().item()
        assert of_scale.item() == pytest.approx(wanted, nan_ok=True)


FIRST_WORDS = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_seed_is_a_number_or_a_tensor(backend):
    require(backend)
    x = torch.randn(3, 50)
    with ops.backend(backend):
        quantized = ops.fake_quantize_learned(x, 3.0, 0.0, 4)
        found = {}
        for seed in (0, 1, 2**32, 2**63, 2**64 - 1):
            y = found[seed] = ops.fake_quantize_learned(x, 3.0, 0.0, 4, keep=0.5, seed=seed)
            assert ((y == x) | (y == quantized)).all() and 50 < (y == x).sum() < 100
            signed = torch.tensor(seed - 2**64 if seed >= 2**63 else seed)
            for same in (signed, int(signed)):
                again = ops.fake_quantize_learned(x, 3.0, 0.0, 4, keep=0.5, seed=same)
                assert torch.equal(again, y)
        assert len({tuple(y.flatten().tolist()) for y in found.values()}) == len(found)
        assert torch.equal(ops.fake_quantize_learned(x, 3.0, 0.0, 4, seed=5), quantized)
        assert torch.equal(ops.fake_quantize_learned(x, 3.0, 0.0, 4, keep=0.0, seed=5), x)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_draws_follow_memory(backend):
    require(backend)
    x = torch.randn(2, 3, 4, 5)
    with ops.backend(backend):
        flat = ops.fake_quantize_learned(x.flatten(), 3.0, 0.0, 4, keep=0.5, seed=2)
        assert torch.equal(
            ops.fake_quantize_learned(x, 3.0, 0.0, 4, keep=0.5, seed=2), flat.view_as(x)
        )
        last = flat.view(2, 4, 5, 3).permute(0, 3, 1, 2)
        given = x.view(2, 4, 5, 3).permute(0, 3, 1, 2)
        assert given.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ops.fake_quantize_learned(given, 3.0, 0.0, 4, keep=0.5, seed=2), last)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_arguments_of_a_draw(backend):
    require(backend)
    x = torch.zeros(3)
    with ops.backend(backend):
        for keep in (-0.1, 1.1, float("nan")):
            with pytest.raises(ValueError, match="keep must be"):
                ops.fake_quantize_learned(x, 1.0, 0.0, 4, keep=keep, seed=1)
        with pytest.raises(TypeError, match="keep must be a number"):
            ops.fake_quantize_learned(x, 1.0, 0.0, 4, keep="half", seed=1)
        for offset in (-1, 2**62):
            with pytest.raises(ValueError, match="offset must be an element's place"):
                ops.fake_quantize_learned(x, 1.0, 0.0, 4, keep=0.5, seed=1, offset=offset)
        with pytest.raises(TypeError, match="offset must be an int, got 'two'"):
            ops.fake_quantize_learned(x, 1.0, 0.0, 4, keep=0.5, seed=1, offset="two")
        with pytest.raises(ValueError, match="keep below 1 needs seed"):
            ops.fake_quantize_learned(x, 1.0, 0.0, 4, keep=0.5)
        with pytest.raises(ValueError, match="at most 64 bits"):
            ops.fake_quantize_learned(x, 1.0, 0.0, 4, keep=0.5, seed=2**64)
        with pytest.raises(TypeError, match=r"seed must be int64, got torch\.int32"):
            ops.fake_quantize_learned(x, 1.0, 0.0, 4, keep=0.5, seed=torch.tensor(1).int())
        with pytest.raises(ValueError, match="seed must hold one number"):
            ops.fake_quantize_learned(x, 1.0, 0.0, 4, keep=0.5, seed=torch.tensor([1, 2]))
        with pytest.raises(TypeError, match="seed must be an int"):
            ops.fake_quantize_learned(x, 1.0, 0.0, 4, keep=0.5, seed=0.5)


@pytest.mark.compile
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_compiled_step_takes_its_seed_from_a_tensor(backend):
    def function(x, scale, seed):
        return ops.fake_quantize_learned(x, scale, 0.0, 4, keep=0.5, seed=seed)

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    with ops.backend(backend):
        for seed in (1, 2):
            found = []
            for call in (function, compiled):
                leaf, scale = x.clone().requires_grad_(), torch.tensor(3.0, requires_grad=True)
                y = call(leaf, scale, torch.tensor(seed))
                found.append([y.detach(), *torch.autograd.grad(y.sum(), (leaf, scale))])
            for mine, theirs in zip(*found, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
