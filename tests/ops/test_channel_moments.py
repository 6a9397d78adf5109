"""Mean and variance of every channel of every image, against float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synq_fast import ops, reference
from tests.ops.backends import BACKENDS, assert_same, require
from tests.ops.cases import DTYPES, layouts
from tests.tolerances import assert_close

SHAPES = {
    (2, 3): "no position to average",
    (1, 1): "one element",
    (3, 5, 7): "odd",
    (2, 8, 14, 14): "an image",
    (1, 3, 70001): "one long run a channel",
    (2, 700, 3, 3): "more channels than a block holds",
    (1, 5, 300, 61): "one image of several parts",
    (3, 7, 5, 6, 4): "a volume",
    (17, 40, 20, 20): "shared between threads",
}


def oracle(x, of_mean, of_variance):
    """Moments and gradient in float64."""
    leaf = x.detach().double().requires_grad_()
    flat = leaf.reshape(*x.shape[:2], -1)
    moments = flat.mean(2), flat.var(2, correction=0)
    torch.autograd.backward(moments, (of_mean.double(), of_variance.double()))
    return *(value.detach() for value in moments), leaf.grad


def gradients_for(x):
    return torch.randn(2, *x.shape[:2], device=x.device).unbind()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64(backend, device, shape, dtype):
    require(backend)
    for name, given_x in layouts(shape, dtype).items():
        x = given_x.to(device).detach().requires_grad_()
        of_mean, of_variance = gradients_for(x)
        with ops.backend(backend):
            moments = ops.channel_moments(x)
            torch.autograd.backward(moments, (of_mean, of_variance))
        *expected, gradient = oracle(x, of_mean, of_variance)
        # Values of about three, and nine when squared.
        for mine, theirs, size in zip(moments, expected, (3, 9), strict=True):
            assert mine.dtype == torch.float32 and mine.shape == x.shape[:2], name
            assert_close(mine.cpu(), theirs.cpu(), "channel_moments", factor=size)
        assert x.grad.dtype == dtype, name
        if dtype == torch.float32:
            assert_close(x.grad.cpu(), gradient.cpu(), "channel_moments_gradient", factor=9)
        else:
            rounded = gradient.to(dtype).double()
            unit = torch.finfo(dtype).eps
            torch.testing.assert_close(x.grad.double(), rounded, rtol=unit, atol=1e-7)


def far_from_zero(shape, ratio, dtype, channels_last):
    """Values whose mean is `ratio` times their standard deviation of one thousandth."""
    x = (1e-3 * (torch.randn(shape, dtype=torch.float64) + ratio)).to(dtype)
    return x.to(memory_format=torch.channels_last) if channels_last else x


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("ratio", [1e2, 1e3, 1e4])
def test_a_mean_far_from_zero_costs_no_accuracy(backend, device, channels_last, ratio):
    require(backend)
    for shape in ((2, 8, 14, 14), (1, 5, 300, 61), (2, 700, 3, 3), (17, 40, 20, 20)):
        x = far_from_zero(shape, ratio, torch.float32, channels_last).to(device).requires_grad_()
        of_mean, of_variance = gradients_for(x)
        with ops.backend(backend):
            mean, variance = ops.channel_moments(x)
            torch.autograd.backward((mean, variance), (torch.zeros_like(of_mean), of_variance))
        *expected, gradient = oracle(x, torch.zeros_like(of_mean), of_variance)
        torch.testing.assert_close(mean.double(), expected[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(variance.double(), expected[1], rtol=2e-5, atol=0)
        # The gradient takes the mean in float32.
        count = x[0, 0].numel()
        error = 2 / count * of_variance.abs().max() * ratio * 1e-3 * 2**-23
        torch.testing.assert_close(x.grad.double(), gradient, rtol=1e-5, atol=float(error))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_variances_of_values_that_are_all_but_equal(backend, device, dtype, channels_last):
    """Half types hold few values near ten; the variance is exactly that of those they hold."""
    require(backend)
    x = torch.full((2, 4, 40, 40), 10.0, dtype=dtype)
    x[:, 1, ::2], x[:, 2, 0, 0] = x[0, 0, 0, 0] * (1 + torch.finfo(dtype).eps), 11
    x[:, 3] = 0.1
    x = x.to(device)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    with ops.backend(backend):
        _, variance = ops.channel_moments(x)
    expected = x.double().flatten(2).var(2, correction=0)
    torch.testing.assert_close(variance.double(), expected, rtol=1e-5, atol=1e-16)
    assert (variance[:, [0, 3]] < 1e-15).all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_first_values_far_from_the_rest(backend, device, channels_last):
    """A centre is taken from the first values; a border must not spoil the interior's variance."""
    require(backend)
    x = far_from_zero((2, 6, 112, 112), 1e4, torch.float32, channels_last)
    x[:, :3, 0] = 0
    x[:, 3:, 0, 0] = -5
    with ops.backend(backend):
        _, variance = ops.channel_moments(x.to(device))
    expected = x.double().flatten(2).var(2, correction=0)
    torch.testing.assert_close(variance.double().cpu(), expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_each_gradient_alone(backend, device, channels_last):
    require(backend)
    x = torch.randn(3, 6, 5, 5, device=device)
    x[0, 0, 0, 0] = float("inf")
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    gradients = gradients_for(x)
    results = []
    for index, gradient in enumerate(gradients):
        leaf = x.clone().requires_grad_()
        with ops.backend(backend):
            ops.channel_moments(leaf)[index].backward(gradient)
        results.append(leaf.grad)
    shape = 3, 6, 1, 1
    of_mean, of_variance = (gradient.reshape(shape) for gradient in gradients)
    torch.testing.assert_close(results[0], (of_mean / 25).expand(x.shape))
    distance = x - x.mean((2, 3), keepdim=True)
    assert not results[1][0, 0].isfinite().any()
    results[1][0, 0] = distance[0, 0] = 0
    torch.testing.assert_close(results[1], of_variance * distance * (2 / 25))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (0, 0)], ids=str)
def test_empty(backend, device, shape):
    require(backend)
    x = torch.empty(shape, device=device, requires_grad=True)
    with ops.backend(backend):
        moments = ops.channel_moments(x)
    for moment in moments:
        assert moment.shape == shape[:2] and moment.isnan().all()
    sum(moment.sum() for moment in moments).backward()
    assert x.grad.shape == shape


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_stay_in_their_channel(backend, device, dtype):
    require(backend)
    values = torch.randn(2, 4, 9, 9).to(dtype)
    values[0, 1, 3, 3] = float("nan")
    values[1, 2, 0, 0] = float("inf")
    values[1, 3, 0, :2] = torch.tensor([float("inf"), float("-inf")])
    for x in layouts(values.shape, dtype).values():
        x = torch.empty_like(x).copy_(values) if x.shape == values.shape else values
        with ops.backend(backend):
            moments = ops.channel_moments(x.to(device))
        for mine, theirs in zip(moments, reference.channel_moments(values), strict=True):
            torch.testing.assert_close(mine.cpu(), theirs, equal_nan=True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 20])
def test_results_do_not_depend_on_the_threads(memory_format, batch):
    require("cpu")
    x = torch.randn(batch, 24, 70, 70).to(memory_format=memory_format)
    gradients = gradients_for(x)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = x.clone().requires_grad_()
            moments = ops.channel_moments(leaf)
            torch.autograd.backward(moments, gradients)
            results.append((*(moment.detach() for moment in moments), leaf.grad))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert torch.equal(mine, theirs)


@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=90),
    channels=st.integers(1, 3),
    channels_last=st.booleans(),
)
def test_properties(values, channels, channels_last):
    x = torch.tensor(values[: len(values) // (2 * channels) * 2 * channels])
    x = x.reshape(2, channels, -1, 1)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    mean, variance = ops.channel_moments(x)
    flat = x.double().reshape(2, channels, -1)
    torch.testing.assert_close(mean.double(), flat.mean(2), atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(variance.double(), flat.var(2, correction=0), atol=1e-9, rtol=1e-5)
    # A variance is not negative, and copies change nothing.
    assert (variance >= 0).all()
    for one, other in zip(ops.channel_moments(x.flip(0)), (mean, variance), strict=True):
        assert_same(one.flip(0), other)


def test_the_energy_of_a_batch_norm():
    """What the op is for: the mean square after an affine map, from the moments before it."""
    x = torch.randn(4, 6, 9, 9)
    weight, bias = torch.randn(2, 6).unbind()
    mean, variance = ops.channel_moments(x)
    energy = weight**2 * variance + (weight * mean + bias) ** 2
    expected = (x * weight[:, None, None] + bias[:, None, None]).square().mean((2, 3))
    torch.testing.assert_close(energy, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_float64(backend, device):
    require(backend)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, device=device, requires_grad=True)
    with ops.backend(backend):
        assert torch.autograd.gradcheck(ops.channel_moments, x)
        assert ops.channel_moments(x)[0].dtype == torch.float64


def test_autocast():
    x = torch.randn(2, 3, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for mine, theirs in zip(ops.channel_moments(x), ops.channel_moments(x), strict=True):
            assert mine.dtype == torch.float32
            assert_same(mine, theirs)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_arguments_are_checked(backend):
    require(backend)
    with ops.backend(backend):
        with pytest.raises(ValueError, match=r"x must have shape \(B, C, ...\), got \(3,\)"):
            ops.channel_moments(torch.zeros(3))
        with pytest.raises(TypeError, match="x must be float16, bfloat16, float32 or float64"):
            ops.channel_moments(torch.zeros(2, 3, dtype=torch.int64))
        with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
            ops.channel_moments([1.0])


def test_the_registered_op_checks_its_arguments():
    require("cpu")
    x = torch.zeros(2, 3, 4)
    forward, backward = (
        torch.ops.synq_fast.channel_moments,
        torch.ops.synq_fast.channel_moments_backward,
    )
    with pytest.raises(ValueError, match=r"x (is not|must have)"):
        forward(x[0, 0])
    with pytest.raises(TypeError, match=r"x (is not|must be)"):
        forward(x.double())
    for wrong in (torch.zeros(2, 4), torch.zeros(2, 3).double(), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"of_variance (is not|must be)"):
            backward(None, wrong, x, x[..., 0])
        with pytest.raises(ValueError, match=r"mean (is not|must be)"):
            backward(None, x[..., 0], x, wrong)
    assert torch.equal(backward(None, None, x, x[..., 0]), x)


def test_no_second_derivative():
    require("cpu")
    x = torch.randn(2, 3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.channel_moments(x)[1].sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        gradient.sum().backward()


@pytest.mark.compile
@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 3, 5, 5),
        torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 3, 5).half(),
        torch.randn(4, 6)[:, ::2],
        torch.empty(0, 3, 2),
    ],
    ids=["image", "channels_last", "half", "strided", "empty"],
)
def test_opcheck(x):
    gradients = gradients_for(x)
    for leaf in (x.detach(), x.detach().requires_grad_()):
        torch.library.opcheck(torch.ops.synq_fast.channel_moments.default, (leaf,))
    for arguments in (gradients, (None, gradients[1]), (gradients[0], None)):
        op = torch.ops.synq_fast.channel_moments_backward.default
        torch.library.opcheck(op, (*arguments, x.detach(), gradients[0]))


@pytest.mark.compile
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend, dynamic):
    def model(x):
        mean, variance = ops.channel_moments(x * 2)
        return (variance - mean.square()).sum() + ops.channel_moments(x)[0].sum()

    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    image = torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)
    for x in (image, torch.cat([image, image])):
        results = []
        for call in (model, compiled):
            leaf = x.detach().clone().requires_grad_()
            with ops.backend(backend):
                loss = call(leaf)
            loss.backward()
            results.append((loss.detach(), leaf.grad))
        for actual, expected in zip(*results, strict=True):
            assert_same(actual, expected)


@pytest.mark.compile
def test_export():
    class Module(torch.nn.Module):
        def forward(self, x):
            return ops.channel_moments(x)

    x = torch.randn(4, 3, 5, 5)
    program = torch.export.export(Module(), (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    x = torch.randn(7, 3, 5, 5)
    for mine, theirs in zip(program.module()(x), Module()(x), strict=True):
        assert_same(mine, theirs)
