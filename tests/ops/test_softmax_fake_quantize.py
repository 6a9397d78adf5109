"""What softmax with fake quantization means; the conformance suite compares the backends."""

import math

import pytest
import torch

from synq_fast import ops
from tests.ops.backends import device  # noqa: F401  (a fixture)


def run(function, logits, scale, bits, gradient, **options):
    leaves = [value.detach().clone().requires_grad_() for value in (logits, scale)]
    y = function(*leaves, bits, **options)
    y.backward(gradient)
    return y.detach(), *(leaf.grad for leaf in leaves)


def separate(logits, scale, bits, *, alpha=1.0, **options):
    values = torch.softmax(logits * alpha, -1)
    return ops.fake_quantize_learned(values, scale, 2.0 ** (bits - 1), bits, **options)


def test_by_hand(device):  # noqa: F811
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0], [0.0, 40.0]], device=device)
    # Probabilities 1/4 and 3/4, halves, and 0 and 1; levels are thirds.
    y = ops.softmax_fake_quantize(logits, 3.0, 2)
    thirds = [[1, 2], [2, 2], [0, 3]]
    assert (y * 3).round().tolist() == thirds
    assert torch.equal(y, torch.tensor(thirds, device=device) / 3)
    # A step of a sixth ends at a half.
    assert ops.softmax_fake_quantize(logits, 6.0, 2)[2].tolist() == [0.0, 0.5]


def test_powers_of_two_by_hand(device):  # noqa: F811
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0], [0.0, 40.0]], device=device)
    # Probabilities 1/4 and 3/4, which is beyond the root of a half, halves, and 0 and 1.
    y = ops.softmax_fake_quantize(logits, 1.0, 4, grid="log2")
    assert y.tolist() == [[0.25, 1.0], [0.5, 0.5], [0.0, 1.0]]
    # Levels 0.3, 0.15 and 0.075, of which a quarter is nearest to the first, and zero.
    y = ops.softmax_fake_quantize(logits, 0.3, 2, grid="log2")
    assert torch.equal(y[:2], torch.full((2, 2), 0.3, device=device))
    assert y[2, 0] == 0


@pytest.mark.parametrize(("bits", "scale"), [(2, 0.1), (4, 1.0), (5, 0.02), (16, 0.5)])
def test_powers_of_two_are_those_of_fake_quantize_log(device, bits, scale):  # noqa: F811
    """The values, and gradients in rows where no code was turned by rounding."""
    logits = torch.randn(3, 4, 37, 37, device=device) * 3
    scale = torch.tensor(scale, device=device)
    gradient = torch.randn_like(logits)

    def in_a_row(logits, scale, bits):
        return ops.fake_quantize_log(torch.softmax(logits * 0.5, -1), scale, bits)

    options = {"alpha": 0.5, "grid": "log2"}
    mine = run(ops.softmax_fake_quantize, logits, scale, bits, gradient, **options)
    theirs = run(in_a_row, logits, scale, bits, gradient)
    turned = mine[0] != theirs[0]
    assert turned.sum() <= 5
    rows = turned.any(-1)
    torch.testing.assert_close(mine[1][~rows], theirs[1][~rows], atol=1e-6, rtol=1e-4)
    assert theirs[1].abs().max() > 1e-3
    # A probability at the largest level may or may not be above it.
    at_end = ((torch.softmax(logits * 0.5, -1) - scale).abs() <= 1e-5 * scale).sum().item()
    torch.testing.assert_close(mine[2], theirs[2], atol=1e-3 + 5 * at_end, rtol=1e-4)
    assert theirs[2] != 0 or scale == 1
    factored = run(
        ops.softmax_fake_quantize, logits, scale, bits, gradient, gradient_scale=0.25, **options
    )
    torch.testing.assert_close(factored[2], mine[2] / 4)
    assert all(torch.equal(one, other) for one, other in zip(factored[:2], mine, strict=False))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("alpha", [1.0, 0.125])
def test_beside_torch(device, bits, alpha):  # noqa: F811
    """The values, and gradients in rows where no code was turned by rounding."""
    logits = torch.randn(3, 4, 37, 37, device=device) * 3
    scale = torch.tensor((2**bits - 1) * 5.0, device=device)
    gradient = torch.randn_like(logits)
    options = {"alpha": alpha, "gradient_scale": 0.5}
    mine = run(ops.softmax_fake_quantize, logits, scale, bits, gradient, **options)
    theirs = run(separate, logits, scale, bits, gradient, **options)
    turned = mine[0] != theirs[0]
    assert turned.sum() <= 3
    torch.testing.assert_close(mine[0][~turned], theirs[0][~turned], atol=0, rtol=1e-6)
    rows = turned.any(-1)
    torch.testing.assert_close(mine[1][~rows], theirs[1][~rows], atol=1e-6, rtol=1e-4)
    assert theirs[1].abs().max() > 1e-3
    bound = (1e-5 * logits.numel() ** 0.5 + 4 * turned.sum().item()) / scale.item() ** 2
    torch.testing.assert_close(mine[2], theirs[2], atol=bound, rtol=1e-3)
    assert theirs[2] != 0


@pytest.mark.parametrize(("scale", "grid"), [(255.0, "uniform"), (0.3, "log2")])
def test_what_is_masked_stays_zero(device, scale, grid):  # noqa: F811
    logits = torch.randn(5, 33, device=device)
    masked = torch.rand(5, 33, device=device) < 0.5
    masked[:, 0] = False
    leaf = logits.masked_fill(masked, -math.inf).requires_grad_()
    y = ops.softmax_fake_quantize(leaf, scale, 8, grid=grid)
    assert (y[masked] == 0).all() and (y[~masked] > 0).any()
    (gradient,) = torch.autograd.grad(y.square().sum(), leaf)
    assert (gradient[masked] == 0).all() and gradient.abs().max() > 0


def test_a_shift_changes_nothing_and_gradients_add_to_zero(device):  # noqa: F811
    logits = torch.randint(-6, 6, (7, 50), device=device).float().requires_grad_()
    y = ops.softmax_fake_quantize(logits, 15.0, 4)
    shifted = ops.softmax_fake_quantize(logits.detach() + 512, 15.0, 4)
    assert torch.equal(y.detach(), shifted)
    (gradient,) = torch.autograd.grad(y, logits, torch.randn_like(y))
    assert gradient.sum(-1).abs().max() < 1e-6 < gradient.abs().max()


def test_half_types(device):  # noqa: F811
    logits = torch.randn(9, 33, device=device)
    for dtype in (torch.float16, torch.bfloat16):
        half = logits.to(dtype)
        y = ops.softmax_fake_quantize(half, 200.0, 8, alpha=0.3)
        wide = ops.softmax_fake_quantize(half.float(), 200.0, 8, alpha=0.3)
        assert torch.equal(y, wide.to(dtype))


X, ONE = torch.zeros(2, 3), torch.ones(())


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.0], ONE, 4), TypeError, r"logits must be a torch\.Tensor, got list"),
        ((X.double(), ONE, 4), TypeError, "logits must be float32, float16 or bfloat16"),
        ((ONE, ONE, 4), ValueError, "logits must have a last dimension"),
        ((X[:, :0], ONE, 4), ValueError, "logits must have a last dimension"),
        ((X, torch.ones(3), 4), ValueError, "scale must hold one value"),
        ((X, ONE.double(), 4), TypeError, "scale must be float32"),
        ((X, "1", 4), TypeError, "scale must be a number or a float32 tensor"),
        ((X, 0.0, 4), ValueError, "scale must be positive, got 0.0"),
        ((X, ONE, 17), ValueError, "bits must be from 2 to 16, got 17"),
    ],
)
def test_bad_arguments(backend, arguments, error, message):
    with ops.backend(backend), pytest.raises(error, match=message):
        ops.softmax_fake_quantize(*arguments)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_bad_alpha(backend):
    with ops.backend(backend), pytest.raises(ValueError, match="alpha must be finite"):
        ops.softmax_fake_quantize(X, ONE, 4, alpha=math.inf)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_bad_grid(backend):
    message = 'grid must be "uniform" or "log2", got \'log\''
    with ops.backend(backend), pytest.raises(ValueError, match=message):
        ops.softmax_fake_quantize(X, ONE, 4, grid="log")
