"""ReLU and fake quantization in one pass: the bits of the two in a row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from synq_fast import ops, reference
from tests.golden_cases import golden_cases
from tests.ops.backends import BACKENDS, assert_same, require
from tests.ops.cases import ALL, axes, channel_ranges, layouts, special_values, ties

UPPERS = (None, 1.5)


def run(function, x, low, high, bits, gradient, **options):
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(leaf, low, high, bits, **options)
    y.backward(gradient)
    return y.detach(), leaf.grad


def composed(x, low, high, bits, axis=None, upper=None, ste="identity"):
    """The ops that a network would call one after the other."""
    activation = functional.relu(x) if upper is None else functional.hardtanh(x, 0.0, upper)
    return reference.fake_quantize(activation, low, high, bits, axis=axis, ste=ste)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(("shape", "dtype"), ALL)
def test_equals_the_ops_in_a_row(backend, device, shape, dtype):
    require(backend)
    for x in layouts(shape, dtype).values():
        x = x.to(device)
        gradient = torch.randn(x.shape, device=device).to(dtype)
        for axis in axes(x):
            low, high = (bound.to(device) for bound in channel_ranges(x, axis))
            for ste, upper in (("identity", None), ("clip", None), ("clip", 1.5)):
                options = {"axis": axis, "upper": upper, "ste": ste}
                expected = run(composed, x, low, high, 4, gradient, **options)
                with ops.backend(backend):
                    actual = run(ops.relu_fake_quantize, x, low, high, 4, gradient, **options)
                for mine, theirs in zip(actual, expected, strict=True):
                    assert mine.dtype == dtype
                    assert_same(mine, theirs)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_golden(golden, backend, device):
    """Over activations a ReLU changes nothing."""
    require(backend)
    count = 0
    for name, case in golden_cases(golden("fake_quantize")):
        if case["kind"] == "per_channel" or case["x"].min() < 0:
            continue
        x, low, high = (case[key].to(device) for key in ("x", "min", "max"))
        with ops.backend(backend):
            y = ops.relu_fake_quantize(x, low, high, case["bits"])
        assert torch.equal(y.cpu(), case["y"]), name
        count += 1
    assert count > 0


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("upper", UPPERS)
def test_special_values(backend, device, dtype, upper):
    require(backend)
    edges = torch.tensor([0.0, -0.0, 1.5, 1e-40, -1e-40])
    x = torch.cat([special_values(), edges]).to(dtype).to(device)
    gradient = torch.ones_like(x)
    for low, high in ((0.0, 1.0), (-1.0, 2.0), (0.0, 0.0), (float("nan"), 1.0), (0.0, 1e30)):
        for ste in ("identity", "clip"):
            expected = run(composed, x, low, high, 4, gradient, upper=upper, ste=ste)
            with ops.backend(backend):
                actual = run(
                    ops.relu_fake_quantize, x, low, high, 4, gradient, upper=upper, ste=ste
                )
            assert_same(actual[0], expected[0])
            # The gradient passes a NaN through ReLU, but not through hardtanh.
            assert_same(actual[1][~x.isnan()], expected[1][~x.isnan()])
            assert (actual[1][x.isnan()] == 1).all()
        assert actual[0][x.isnan()].isnan().all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_ties(backend, device, bits):
    require(backend)
    for low, high in ((0.0, 3.7), (-1.3, 2.1)):
        x = ties(bits, low, high).to(device)
        with ops.backend(backend):
            y = ops.relu_fake_quantize(x, low, high, bits, upper=3.0)
        assert_same(y, composed(x, low, high, bits, upper=3.0))


@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=200),
    high=st.floats(2**-10, 1e4, width=32),
    upper=st.none() | st.floats(2**-10, 1e4),
    bits=st.integers(2, 16),
)
def test_properties(values, high, upper, bits):
    x = torch.tensor(values)
    y = ops.relu_fake_quantize(x, 0.0, high, bits, upper=upper)
    assert torch.equal(y, composed(x, 0.0, high, bits, upper=upper))
    assert (y >= 0).all()
    assert (y[x <= 0] == 0).all()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradients_by_hand(backend):
    require(backend)
    values = [-1.0, 0.0, 1e-3, 5.9, 6.0, 7.0, float("nan"), float("inf")]
    x = torch.tensor(values, requires_grad=True)
    with ops.backend(backend):
        plain = ops.relu_fake_quantize(x, 0.0, 4.0, 4)
        bounded = ops.relu_fake_quantize(x, 0.0, 4.0, 4, upper=6)
        clipped = ops.relu_fake_quantize(x, 0.0, 4.0, 4, upper=6, ste="clip")
    for y, wanted in (
        (plain, [0, 0, 1, 1, 1, 1, 1, 1]),
        (bounded, [0, 0, 1, 1, 0, 0, 1, 0]),
        (clipped, [0, 0, 1, 0, 0, 0, 1, 0]),
    ):
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert gradient.tolist() == wanted


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_second_derivative(backend):
    require(backend)
    x = torch.tensor([-3.0, 0.2, 3.0], requires_grad=True)
    weight = torch.ones(3, requires_grad=True)
    with ops.backend(backend):
        y = ops.relu_fake_quantize(x, 0.0, 1.0, 4, ste="clip")
    (gradient,) = torch.autograd.grad((y * weight).sum(), x, create_graph=True)
    gradient.sum().backward()
    assert weight.grad.tolist() == [0, 1, 0]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_upper_is_checked(backend):
    require(backend)
    x = torch.zeros(3)
    with ops.backend(backend):
        for upper in (0.0, -1.0, float("inf"), float("nan")):
            with pytest.raises(ValueError, match="upper must be positive and finite, got"):
                ops.relu_fake_quantize(x, 0.0, 1.0, 4, upper=upper)
        for upper in ("6", True):
            with pytest.raises(TypeError, match="upper must be a number or None"):
                ops.relu_fake_quantize(x, 0.0, 1.0, 4, upper=upper)
    with pytest.raises(ValueError, match=r"upper (is not|must be)"):
        arguments = x, torch.zeros(()), torch.ones(()), 4, None
        torch.ops.synq_fast.relu_fake_quantize(*arguments, -1.0, False)
