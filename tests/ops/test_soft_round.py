"""What soft rounding means; the conformance suite compares the backends."""

import math

import pytest
import torch

from synq_fast import ops
from synq_fast.testing.cases.soft_round import EDGE
from tests.ops.backends import assert_same, device  # noqa: F401  (a fixture)


def variables(device):  # noqa: F811
    v = torch.randn(6, 4, 3, 3, device=device, requires_grad=True)
    base = torch.randint(-8, 8, v.shape, dtype=torch.int8, device=device)
    scale = torch.full((6,), 3.0, device=device, requires_grad=True)
    return v, base, scale


def test_by_hand(device):  # noqa: F811
    v = torch.tensor([0.0, math.log(3), 9.0, -9.0, math.log(3), 9.0], device=device)
    base = torch.tensor([0, 2, 3, -5, 7, -9], dtype=torch.int8, device=device)
    w, penalty = ops.soft_round(v, base, 2.0, 1.4, 4, 2.0, axis=None)
    # Shares 0.5, 0.8, 1, 0, 0.8 and 1; the last but one lies beyond the codes, the last before.
    expected = torch.tensor([1.5, 3.8, 5.0, -4.0, 8.0, -7.0]) / 2
    torch.testing.assert_close(w.cpu(), expected)
    assert penalty.item() == pytest.approx(1 + 2 * (1 - 0.6**2))


def test_decided_weights_are_those_of_the_quantizer(device):  # noqa: F811
    """Where every share is 0 or 1 a weight is a level of the grid: nothing is left to decide."""
    x = torch.randn(6, 40, device=device)
    scale = torch.linspace(2, 5, 6, device=device)
    base = (scale[:, None] * x).floor().clamp(-8, 7)
    v = torch.where(scale[:, None] * x - base > 0.5, EDGE + 0.1, -EDGE - 0.1)
    w, penalty = ops.soft_round(v, base.to(torch.int8), scale, 0.0, 4, 20.0)
    expected = ops.fake_quantize_learned(x, scale, torch.zeros(6, device=device), 4, axis=0)
    assert_same(w, expected)
    assert penalty == 0


def test_a_shrinking_penalty_decides(device):  # noqa: F811
    """Descent on the penalty alone drives every share to an end: the nearer one."""
    v = torch.linspace(-2, 2, 40, device=device).requires_grad_()
    base = torch.zeros(40, dtype=torch.int8, device=device)
    optimizer = torch.optim.SGD([v], lr=0.5)
    exponent = torch.tensor(2.0, device=device)
    for _ in range(200):
        optimizer.zero_grad()
        _, penalty = ops.soft_round(v, base, 1.0, 0.0, 4, exponent, axis=None)
        penalty.backward()
        optimizer.step()
    w, penalty = ops.soft_round(v.detach(), base, 1.0, 0.0, 4, exponent, axis=None)
    assert penalty == 0
    assert_same(w, (torch.linspace(-2, 2, 40) > 0).float())


def test_an_exponent_is_read_when_it_is_needed(device):  # noqa: F811
    v, base, scale = variables(device)
    exponent = torch.tensor(2.0, device=device)
    first = ops.soft_round(v, base, scale, 0.0, 4, exponent)[1]
    exponent.fill_(8.0)
    second = ops.soft_round(v, base, scale, 0.0, 4, exponent)[1]
    assert second > first
    torch.testing.assert_close(second, ops.soft_round(v, base, scale, 0.0, 4, 8.0)[1])


def test_the_gradients_of_both_results_add_up(device):  # noqa: F811
    v, base, scale = variables(device)

    def gradients(weights, of_penalty):
        w, penalty = ops.soft_round(v, base, scale, 0.0, 4, 5.0)
        loss = weights * w.square().sum() + of_penalty * penalty
        return torch.autograd.grad(loss, (v, scale))

    together, first, second = gradients(1.0, 0.3), gradients(1.0, 0.0), gradients(0.0, 0.3)
    torch.testing.assert_close(together[0], first[0] + second[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together[1], first[1])
    w, _ = ops.soft_round(v, base, scale, 0.0, 4, 5.0)
    (alone,) = torch.autograd.grad(w.square().sum(), v)
    torch.testing.assert_close(alone, first[0])
    _, penalty = ops.soft_round(v, base, scale, 0.0, 4, 5.0)
    (alone,) = torch.autograd.grad(0.3 * penalty, v)
    torch.testing.assert_close(alone, second[0])


def test_a_scale_in_a_half_type_gets_its_gradient(device):  # noqa: F811
    v, base, scale = variables(device)
    half = scale.detach().bfloat16().requires_grad_()
    w, _ = ops.soft_round(v, base, half, 0.0, 4, 5.0)
    w.sum().backward()
    wide = scale.detach().requires_grad_()
    ops.soft_round(v, base, wide, 0.0, 4, 5.0)[0].sum().backward()
    assert half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(half.grad, wide.grad.bfloat16())


def test_nothing_of_an_empty_tensor(device):  # noqa: F811
    v = torch.zeros(0, 3, device=device, requires_grad=True)
    base = torch.zeros(0, 3, dtype=torch.int8, device=device)
    w, penalty = ops.soft_round(v, base, torch.ones(3, device=device), 0.0, 4, 5.0, axis=1)
    assert w.shape == v.shape and penalty == 0
    (w.sum() + penalty).backward()
    assert v.grad.shape == v.shape


V, BASE = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int8)
ONE = torch.ones(2)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.0], BASE, ONE, ONE, 4, 2.0), TypeError, r"v must be a torch\.Tensor, got list"),
        ((V.half(), BASE, ONE, ONE, 4, 2.0), TypeError, "v must be float32 or float64"),
        ((V, BASE.int(), ONE, ONE, 4, 2.0), TypeError, "base must be int8, got torch.int32"),
        ((V, BASE[:1], ONE, ONE, 4, 2.0), ValueError, "base must have shape that of v"),
        ((V, BASE, ONE[:1], ONE, 4, 2.0), ValueError, r"scale must have shape \(2,\)"),
        ((V, BASE, -ONE, ONE, 4, 2.0), ValueError, "scale must be positive, got -1.0 in channel 0"),
        ((V, BASE, ONE, ONE.int(), 4, 2.0), TypeError, "zero_point must be float32"),
        ((V, BASE, ONE, "0", 4, 2.0), TypeError, "zero_point must be a number"),
        ((V, BASE, ONE, ONE, 9, 2.0), ValueError, "bits must be from 2 to 8, which int8 holds"),
        ((V, BASE, ONE, ONE, 1, 2.0), ValueError, "bits must be from 2 to"),
        ((V, BASE, ONE, ONE, True, 2.0), TypeError, "bits must be an int"),
        ((V, BASE, ONE, ONE, 4, 0.5), ValueError, "exponent must be at least 1, got 0.5"),
        ((V, BASE, ONE, ONE, 4, ONE), ValueError, "exponent must be a number or a 0-d"),
        ((V, BASE, ONE, ONE, 4, ONE[0].double()), TypeError, "exponent must be float32"),
    ],
)
def test_bad_arguments(backend, arguments, error, message):
    with ops.backend(backend), pytest.raises(error, match=message):
        ops.soft_round(*arguments)


def test_a_bad_axis():
    with pytest.raises(IndexError, match="axis 2 is out of range for v"):
        ops.soft_round(V, BASE, ONE, ONE, 4, 2.0, axis=2)
    with pytest.raises(TypeError, match="axis must be an int or None, got True"):
        ops.soft_round(V, BASE, ONE, ONE, 4, 2.0, axis=True)
