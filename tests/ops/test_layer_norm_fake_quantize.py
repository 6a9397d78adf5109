"""What layer normalisation with fake quantization means; the suite compares the backends."""

import pytest
import torch
from torch.nn import functional

from synq_fast import ops
from tests.ops.backends import device  # noqa: F401  (a fixture)


def inputs(device, bits=4, columns=48):  # noqa: F811
    x = torch.randn(3, 50, columns, device=device) * 2 + 0.7
    weight, bias = torch.rand(columns, device=device) + 0.5, torch.randn(columns, device=device)
    scale = torch.tensor((2**bits - 1) / 5.0, device=device)
    return x, weight, bias, scale, torch.tensor(0.7, device=device)


def run(function, tensors, gradient, **options):
    leaves = [value.detach().clone().requires_grad_() for value in tensors]
    y = function(*leaves, **options)
    y.backward(gradient)
    return y.detach(), *(leaf.grad for leaf in leaves)


def separate(x, weight, bias, scale, zero_point, bits, *, eps=1e-6, **options):
    values = functional.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return ops.fake_quantize_learned(values, scale, zero_point, bits, **options)


def test_by_hand(device):  # noqa: F811
    x = torch.tensor([[1.0, 3.0], [5.0, -5.0], [2.0, 2.0]], device=device)
    weight, bias = torch.tensor([1.0, 2.0], device=device), torch.tensor([0.5, 0.0], device=device)
    # Rows become (-1, 1), (1, -1) and (0, 0); codes of half a unit, from -8 to 7.
    y = ops.layer_norm_fake_quantize(x, weight, bias, 2.0, 0.0, 4, eps=0.0)[:2]
    assert y.tolist() == [[-0.5, 2.0], [1.5, -2.0]]
    y = ops.layer_norm_fake_quantize(x, None, None, 2.0, 0.0, 4)
    assert y.tolist() == [[-1.0, 1.0], [1.0, -1.0], [0.0, 0.0]]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_beside_torch(device, bits, eps):  # noqa: F811
    """The values, and gradients where no code was turned by rounding."""
    tensors = inputs(device, bits)
    gradient = torch.randn_like(tensors[0])
    options = {"bits": bits, "eps": eps, "gradient_scale": 0.5}
    mine = run(ops.layer_norm_fake_quantize, tensors, gradient, **options)
    theirs = run(separate, tensors, gradient, **options)
    turned = mine[0] != theirs[0]
    assert turned.sum() <= 2
    torch.testing.assert_close(mine[0][~turned], theirs[0][~turned], atol=1e-6, rtol=0)
    rows = turned.any(-1)
    torch.testing.assert_close(mine[1][~rows], theirs[1][~rows], atol=2e-5, rtol=1e-4)
    bound = 1e-3 + 8 * turned.sum().item()
    for ours, expected in zip(mine[2:], theirs[2:], strict=True):
        torch.testing.assert_close(ours, expected, atol=bound, rtol=1e-3)
        assert expected.abs().max() > 5e-3


def test_a_row_stands_alone(device):  # noqa: F811
    x, *rest = inputs(device)
    y = ops.layer_norm_fake_quantize(x, *rest, 4)
    assert torch.equal(ops.layer_norm_fake_quantize(x[1:2, 7], *rest, 4)[0], y[1, 7])
    x[0, 3, 5] = float("nan")
    broken = ops.layer_norm_fake_quantize(x, *rest, 4)
    assert broken[0, 3].isnan().all()
    assert torch.equal(broken[1:], y[1:])


def test_scaling_a_row_changes_nothing(device):  # noqa: F811
    x, *rest = inputs(device)
    y = ops.layer_norm_fake_quantize(x, *rest, 4, eps=0.0)
    assert torch.equal(ops.layer_norm_fake_quantize(x * 4, *rest, 4, eps=0.0), y)


def test_gradients_of_a_row_are_centred(device):  # noqa: F811
    """A shift of a row changes nothing, nor does a scaling of it."""
    x, *rest = inputs(device)
    x.requires_grad_()
    y = ops.layer_norm_fake_quantize(x, *rest, 4, eps=0.0)
    (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert gradient.abs().max() > 0.1
    assert gradient.sum(-1).abs().max() < 1e-4
    centred = x.detach() - x.detach().mean(-1, keepdim=True)
    assert (gradient * centred).sum(-1).abs().max() < 1e-4


def test_half_types(device):  # noqa: F811
    x, weight, bias, scale, zero_point = inputs(device)
    for dtype in (torch.float16, torch.bfloat16):
        half = x.to(dtype)
        y = ops.layer_norm_fake_quantize(half, weight, bias, scale, zero_point, 4)
        wide = ops.layer_norm_fake_quantize(half.float(), weight, bias, scale, zero_point, 4)
        assert torch.equal(y, wide.to(dtype))
        factor = weight.to(dtype).requires_grad_()
        ops.layer_norm_fake_quantize(x, factor, bias, scale, zero_point, 4).sum().backward()
        assert factor.grad.dtype == dtype


X, ROW, ONE = torch.zeros(2, 3), torch.ones(3), torch.ones(())


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.0], ROW, ROW, ONE, ONE, 4), TypeError, r"x must be a torch\.Tensor, got list"),
        ((X.double(), ROW, ROW, ONE, ONE, 4), TypeError, "x must be float32, float16 or bfloat16"),
        ((ONE, ROW, ROW, ONE, ONE, 4), ValueError, "x must have a last dimension"),
        ((X[:, :0], None, None, ONE, ONE, 4), ValueError, "x must have a last dimension"),
        ((X, ROW[:2], ROW, ONE, ONE, 4), ValueError, r"weight must have shape \(3,\)"),
        ((X, ROW, ROW.double(), ONE, ONE, 4), TypeError, "bias must be float32"),
        ((X, 1.0, ROW, ONE, ONE, 4), TypeError, "weight must be a float32 tensor"),
        ((X, ROW, ROW, torch.ones(3), ONE, 4), ValueError, "scale must hold one value"),
        ((X, ROW, ROW, -ONE, ONE, 4), ValueError, "scale must be positive, got -1.0"),
        ((X, ROW, ROW, ONE, ONE, 1), ValueError, "bits must be from 2 to 16, got 1"),
    ],
)
def test_bad_arguments(backend, arguments, error, message):
    with ops.backend(backend), pytest.raises(error, match=message):
        ops.layer_norm_fake_quantize(*arguments)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_bad_eps(backend):
    with ops.backend(backend), pytest.raises(ValueError, match="eps must be at least 0"):
        ops.layer_norm_fake_quantize(X, ROW, ROW, ONE, ONE, 4, eps=-1.0)
