"""A folded BatchNorm, ReLU and fake quantization in one pass: the bits of the ops in a row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from synq_fast import ops, reference
from tests.ops.backends import BACKENDS, assert_same, require
from tests.ops.cases import ALL, layouts, special_values
from tests.tolerances import assert_close

SHAPES = [(shape, dtype) for shape, dtype in ALL if len(shape) >= 2]
LONG = {
    (3, 5, 4000): "rows of several blocks",
    (2100, 33): "channels innermost, several parts",
    (1, 3, 70000): "one row a channel",
}


def factors(channels, device="cpu"):
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(2, channels, generator=generator).to(device)
    return weight, bias


def mapped(x, weight, bias, residual=None):
    shape = [1, -1] + [1] * (x.ndim - 2)
    value = x.float() * weight.reshape(shape) + bias.reshape(shape)
    return value if residual is None else value + residual.float()


def composed(x, weight, bias, low, high, bits, residual=None, upper=None, ste="identity"):
    """The ops in a row, in float32."""
    value = mapped(x, weight, bias, residual)
    activation = functional.relu(value) if upper is None else functional.hardtanh(value, 0.0, upper)
    return reference.fake_quantize(activation, low, high, bits, ste=ste).to(x.dtype)


def oracle(x, weight, bias, low, high, gradient, residual, upper, clip):
    """The sums in float64: of weight, of bias, and what one rounding of every term amounts to."""
    value = mapped(x, weight, bias, residual)
    blocked = value <= 0
    if upper is not None:
        blocked |= value >= upper
    masked = gradient.double().masked_fill(blocked, 0.0)
    if clip:
        leaf = value.clamp(0, upper).requires_grad_()
        reference.fake_quantize(leaf, low, high, 4, ste="clip").sum().backward()
        masked = masked * leaf.grad.double()
    others = [dim for dim in range(x.ndim) if dim != 1]
    terms = masked * x.double(), masked
    return [term.sum(others) for term in terms], [term.abs().sum(others) for term in terms]


def run(function, x, weight, bias, low, high, bits, gradient, residual=None, **options):
    leaves = [v.detach().clone().requires_grad_() for v in (x, weight, bias)]
    others = [] if residual is None else [residual.detach().clone().requires_grad_()]
    y = function(*leaves, low, high, bits, residual=others[0] if others else None, **options)
    y.backward(gradient)
    return y.detach(), *(leaf.grad for leaf in (leaves[0], *others, *leaves[1:]))


def check(backend, x, low, high, upper, ste, residual=None):
    weight, bias = factors(x.shape[1], x.device)
    gradient = torch.randn(x.shape, device=x.device).to(x.dtype)
    arguments = x, weight, bias, low, high
    options = {"upper": upper, "ste": ste}
    expected = run(composed, *arguments, 4, gradient, residual, **options)
    with ops.backend(backend):
        actual = run(ops.affine_relu_fake_quantize, *arguments, 4, gradient, residual, **options)
    for mine, theirs in zip(actual[:-2], expected[:-2], strict=True):
        assert mine.dtype == x.dtype
        assert_same(mine, theirs)
    sums, sizes = oracle(*arguments, gradient, residual, upper, ste == "clip")
    for mine, theirs, size in zip(actual[-2:], sums, sizes, strict=True):
        assert mine.dtype == torch.float32
        unit = size.clamp(min=1)
        assert_close((mine / unit).cpu(), (theirs / unit).cpu(), "affine_gradient")


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(("shape", "dtype"), SHAPES)
def test_equals_the_ops_in_a_row(backend, device, shape, dtype):
    require(backend)
    low, high = torch.tensor(0.0, device=device), torch.tensor(2.5, device=device)
    for x in layouts(shape, dtype).values():
        for upper, ste in ((None, "identity"), (None, "clip"), (2.0, "clip")):
            check(backend, x.to(device), low, high, upper, ste)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(("shape", "dtype"), SHAPES)
def test_equals_the_ops_in_a_row_with_a_residual(backend, device, shape, dtype):
    require(backend)
    low, high = torch.tensor(0.0, device=device), torch.tensor(2.5, device=device)
    other = (torch.randn(shape) * 2).to(dtype)
    for name, x in layouts(shape, dtype).items():
        # One of the layout of x, and one that has to be brought to it.
        residual = other.transpose(0, -1) if name == "transposed" else other
        alike = torch.empty_like(x).copy_(residual)
        for summand, upper, ste in ((alike, None, "identity"), (residual, 2.0, "clip")):
            check(backend, x.to(device), low, high, upper, ste, summand.to(device))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("shape", LONG)
def test_long_sums(backend, device, shape):
    require(backend)
    low, high = torch.tensor(0.0, device=device), torch.tensor(2.5, device=device)
    x, residual = torch.randn(2, *shape, device=device).unbind()
    check(backend, x, low, high, None, "identity")
    check(backend, x, low, high, None, "clip", residual)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_special_values(backend, device, dtype):
    require(backend)
    values = special_values().to(dtype).to(device)
    x = values.reshape(2, 5, -1)
    weight = torch.tensor([1.0, -2.0, float("nan"), 0.0, float("inf")], device=device)
    bias = torch.tensor([0.0, 1.0, 0.0, -0.0, 1.0], device=device)
    for low, high in ((0.0, 1.0), (0.0, 1e30), (float("nan"), 1.0)):
        for upper in (None, 0.75):
            arguments = x, weight, bias, low, high, 4
            with ops.backend(backend):
                y = ops.affine_relu_fake_quantize(*arguments, upper=upper)
                # With NaN, infinities of both signs and zeros among the summands.
                z = ops.affine_relu_fake_quantize(*arguments, residual=x.flip(2), upper=upper)
            assert_same(y, composed(*arguments, upper=upper))
            assert_same(z, composed(*arguments, residual=x.flip(2), upper=upper))


def test_folded_batch_norm():
    """Close to the BatchNorm itself, whose order of operations rounds otherwise."""
    x = torch.randn(4, 6, 9, 9)
    norm = torch.nn.BatchNorm2d(6).eval()
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean):
            value.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        weight = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        bias = norm.bias - norm.running_mean * weight
        y = ops.affine_relu_fake_quantize(x, weight, bias, 0.0, 3.0, 8)
        expected = ops.fake_quantize(functional.relu(norm(x)), 0.0, 3.0, 8)
    step = 3 / 255
    assert (y - expected).abs().max() <= step * 1.01
    assert (y != expected).float().mean() < 1e-2


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("wanted", ["x", "residual", "weight", "bias"])
def test_only_the_gradients_asked_for(wanted, backend, memory_format):
    require(backend)
    x, residual, gradient = torch.randn(3, 3, 4, 5, 6).unbind()
    x = x.to(memory_format=memory_format)
    weight, bias = factors(4)
    grid = torch.tensor(0.0), torch.tensor(2.0), 4
    inputs = {"x": x.clone(), "residual": residual, "weight": weight, "bias": bias}
    inputs[wanted].requires_grad_()
    with ops.backend(backend):
        arguments = x, weight, bias, *grid, gradient, residual
        everything = run(ops.affine_relu_fake_quantize, *arguments)
        first, summand, *rest = inputs.values()
        y = ops.affine_relu_fake_quantize(first, *rest, *grid, residual=summand)
        y.backward(gradient)
    position = list(inputs).index(wanted)
    assert torch.equal(inputs[wanted].grad, everything[1 + position])


@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=120),
    pairs=st.lists(
        st.tuples(st.floats(-10, 10, width=32), st.floats(-10, 10, width=32)),
        min_size=3,
        max_size=3,
    ),
    upper=st.none() | st.floats(2**-10, 100),
    bits=st.integers(2, 16),
)
def test_properties(values, pairs, upper, bits):
    x = torch.tensor(values[: len(values) // 3 * 3]).reshape(-1, 3)
    weight, bias = torch.tensor(pairs).T
    for arranged in (x, x.T.contiguous().T):
        for residual in (None, x.flip(0) * 3):
            arguments = arranged, weight, bias, 0.0, 7.0, bits
            y = ops.affine_relu_fake_quantize(*arguments, residual=residual, upper=upper)
            assert torch.equal(y, composed(*arguments, residual=residual, upper=upper))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_sums_do_not_depend_on_the_threads(memory_format):
    require("cpu")
    x = torch.randn(16, 24, 20, 20).to(memory_format=memory_format)
    gradient, residual = torch.randn_like(x), torch.randn_like(x)
    bounds = torch.tensor(0.0), torch.tensor(2.0)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            arguments = x, *factors(24), *bounds, 4, gradient, residual
            results.append(run(ops.affine_relu_fake_quantize, *arguments))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_factors_are_checked(backend):
    require(backend)
    x = torch.zeros(2, 3)
    weight, bias = torch.ones(3), torch.zeros(3)
    with ops.backend(backend):
        with pytest.raises(ValueError, match=r"weight must have shape \(3,\)"):
            ops.affine_relu_fake_quantize(x, torch.ones(2), bias, 0.0, 1.0, 4)
        with pytest.raises(TypeError, match=r"bias must be a float32 tensor, or .*, got float"):
            ops.affine_relu_fake_quantize(x, weight, 0.0, 0.0, 1.0, 4)
        with pytest.raises(TypeError, match="weight must be float32"):
            ops.affine_relu_fake_quantize(x, weight.double(), bias, 0.0, 1.0, 4)
        with pytest.raises(ValueError, match="x must have a channel dimension 1"):
            ops.affine_relu_fake_quantize(torch.zeros(3), weight, bias, 0.0, 1.0, 4)
        with pytest.raises(ValueError, match="range_min must not exceed range_max"):
            ops.affine_relu_fake_quantize(x, weight, bias, 2.0, 1.0, 4)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_residual_is_checked(backend):
    require(backend)
    x = torch.zeros(2, 3)
    arguments = x, torch.ones(3), torch.zeros(3), 0.0, 1.0, 4
    with ops.backend(backend):
        with pytest.raises(TypeError, match=r"residual must be a torch\.Tensor or None, got"):
            ops.affine_relu_fake_quantize(*arguments, residual=1.0)
        with pytest.raises(TypeError, match=r"residual must be of the type of x, torch\.float32"):
            ops.affine_relu_fake_quantize(*arguments, residual=x.half())
        with pytest.raises(ValueError, match=r"the shape of x, \(2, 3\), got \(3,\)"):
            ops.affine_relu_fake_quantize(*arguments, residual=x[0])
        with pytest.raises(ValueError, match="residual is on meta but x is on cpu"):
            ops.affine_relu_fake_quantize(*arguments, residual=x.to("meta"))


@pytest.mark.parametrize("op", ["affine_relu_fake_quantize", "affine_relu_fake_quantize_backward"])
def test_the_registered_op_checks_its_residual(op):
    require("cpu")
    x = torch.zeros(2, 3)
    arguments = torch.ones(3), torch.zeros(3)
    grid = torch.tensor(0.0), torch.tensor(1.0), 4, None, False
    if op.endswith("backward"):
        grid = *grid, True, True
        x, *arguments = x, x, *arguments
    call = getattr(torch.ops.synq_fast, op)
    for wrong, error in ((torch.zeros(2, 3).half(), TypeError), (torch.zeros(3, 2), ValueError)):
        with pytest.raises(error, match=r"residual (is not|must)"):
            call(x, *arguments, wrong, *grid)


def test_no_second_derivative():
    require("cpu")
    x = torch.randn(2, 3, requires_grad=True)
    weight, bias = factors(3)
    y = ops.affine_relu_fake_quantize(x, weight, bias, 0.0, 1.0, 4)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        gradient.sum().backward()
