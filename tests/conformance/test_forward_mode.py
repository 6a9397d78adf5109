"""Forward-mode derivatives of every op: those that reverse mode has, or a refusal, never a zero."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from synq_fast import ops, reference
from synq_fast.ops._registry import OPS, reference_kernel
from synq_fast.testing import CASES
from tests.conformance.registered import NAMES
from tests.conformance.typical import differentiable, results_of, tensors_of
from tests.ops.backends import require

BACKENDS = ["reference", "cpu"]
# The ops of integers have nothing that could carry a tangent.
MOVING = [
    name
    for name, case in CASES.items()
    if any(x.is_floating_point() for x in case.typical().tensors)
]
# Constants to autograd: their tangents are zero as their gradients are.
CONSTANT = {"pack_codes", "quantize_codes", "search_range", "unpack_codes", "update_range"}


def split(name):
    """The tensors that may carry tangents, those that get gradients, and the rest."""
    tensors = tensors_of(name)
    moved = [x for x in tensors if x.is_floating_point()]
    if name == "update_range":
        moved = moved[:1]  # the state is written to
    return moved, tensors[len(moved) :]


def tangents_like(tensors):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(x.shape, generator=generator) for x in tensors]


def weights_like(results):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in results]


def product(pairs):
    return sum(float((a.double() * b.double()).sum()) for a, b in pairs)


def expected_product(name, moved, rest, tangents):
    """The products of weights and derivatives, from reverse mode on the kernels."""
    count = differentiable(name)
    leaves = [x.clone().requires_grad_(i < count) for i, x in enumerate(moved)]
    results = results_of(name, ops, [*leaves, *rest])
    weights = weights_like(results)
    trained = [(y, w.to(y.dtype)) for y, w in zip(results, weights, strict=True) if y.requires_grad]
    assert bool(trained) == (count > 0)
    if not trained:
        return 0.0
    outputs, chosen = zip(*trained, strict=True)
    gradients = torch.autograd.grad(outputs, leaves[:count], chosen)
    return product(zip(gradients, tangents, strict=False))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MOVING)
def test_jvp_is_the_transpose_of_the_gradient(name, backend):
    require(backend)
    moved, rest = split(name)
    tangents = tangents_like(moved)
    with ops.backend(backend):
        expected = expected_product(name, moved, rest, tangents)
        results, moves = torch.func.jvp(
            lambda *x: tuple(results_of(name, ops, [*x, *rest])), tuple(moved), tuple(tangents)
        )
    actual = product(zip(weights_like(results), moves, strict=True))
    assert actual == pytest.approx(expected, rel=2e-4, abs=1e-5)
    assert (expected == 0) == (differentiable(name) == 0)
    with ops.backend("reference"):
        plain = results_of(name, ops, [*moved, *rest])
    for mine, theirs in zip(results, plain, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", MOVING)
def test_dual_numbers_do_as_jvp_does(name):
    moved, rest = split(name)
    tangents = tangents_like(moved)
    expected = torch.func.jvp(
        lambda *x: tuple(results_of(name, ops, [*x, *rest])), tuple(moved), tuple(tangents)
    )[1]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(moved, tangents, strict=True)]
        for y, move in zip(results_of(name, ops, [*duals, *rest]), expected, strict=True):
            tangent = forward_ad.unpack_dual(y).tangent
            tangent = torch.zeros_like(move) if tangent is None else tangent
            torch.testing.assert_close(tangent.double(), move.double())


@pytest.mark.parametrize("name", ["low_pass", "channel_moments", "fake_quantize", "grad_cam"])
def test_jacobians(name):
    (x, *others), rest = split(name)

    def function(x):
        return results_of(name, ops, [x, *others, *rest])[0]

    forward = torch.func.jacfwd(function)(x)
    with ops.backend("reference"):
        backward = torch.autograd.functional.jacobian(function, x)
    torch.testing.assert_close(forward, backward, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["channel_moments", "bn_statistics_loss", "low_pass"])
def test_hessians(name):
    (x, *others), rest = split(name)

    def function(x):
        return sum(y.square().sum() for y in results_of(name, ops, [x, *others, *rest]))

    actual = torch.func.hessian(function)(x)
    x = x.double()
    others = [other.double() for other in others]
    with ops.backend("reference"):

        def gradient(x):
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(function(leaf), leaf)[0]

        columns = []
        for i in range(x.numel()):
            step = torch.zeros(x.numel(), dtype=torch.float64)
            step[i] = 1e-5
            step = step.view(x.shape)
            columns.append((gradient(x + step) - gradient(x - step)) / 2e-5)
    expected = torch.stack([column.flatten() for column in columns], 1)
    actual = actual.reshape(x.numel(), x.numel()).double()
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)


def test_linearize():
    x, tangent = torch.randn(2, 1, 2, 6, 7).unbind()
    y, move = torch.func.linearize(lambda x: ops.low_pass(x, 2.0), x)
    torch.testing.assert_close(y, ops.low_pass(x, 2.0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(move(tangent), ops.low_pass(tangent, 2.0), atol=1e-6, rtol=1e-5)


def test_a_level_without_tangents_changes_no_choice_of_a_missing_backend():
    with (
        forward_ad.dual_level(),
        pytest.raises(ops.BackendUnavailableError),
        ops.backend("triton"),
    ):
        ops.low_pass(torch.zeros(3, 3), 1.0)


class Recorder(TorchDispatchMode):
    """Keeps the arguments of every registered op of ours."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "synq_fast":
            self.calls[func._schema.name.removeprefix("synq_fast::")] = args, kwargs or {}
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def registered():
    """Arguments of every registered op, from the public functions and their gradients."""
    recorder = Recorder()
    for name, case in CASES.items():
        for options in ({}, *case.variants):
            for train in (False, True):
                count = differentiable(name) if train else 0
                tensors = [
                    x.clone().requires_grad_() if i < count else x
                    for i, x in enumerate(tensors_of(name))
                ]
                with recorder:
                    outputs = results_of(name, ops, tensors, options)
                    trained = [y for y in outputs if y.requires_grad]
                    if trained:
                        sum(y.sum() for y in trained).backward()
    return recorder.calls


@pytest.mark.parametrize("name", NAMES)
def test_a_registered_op_refuses_tangents(name, registered):
    require("cpu")
    arguments, options = registered[name]

    def dual(value):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return forward_ad.make_dual(value.detach().clone(), torch.ones_like(value))
        if isinstance(value, list | tuple):
            return [dual(part) for part in value]
        return value

    op = getattr(torch.ops.synq_fast, name).default
    with forward_ad.dual_level():
        duals = [dual(value) for value in arguments]
        if name in CONSTANT:
            op(*duals, **options)
            return
        with pytest.raises(NotImplementedError, match="forward-mode derivative"):
            op(*duals, **options)


def test_the_reference_of_an_op_refuses_tangents():
    """As it does without native kernels, where `torch.ops` leads to Python."""
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        reference_kernel(OPS["low_pass"])(torch.zeros(3, 3), 1.0, "gaussian", 2)


def test_the_straight_through_estimate_in_forward_mode():
    """Right values by hand: 1 inside the range, 0 outside, 0 in the range itself."""
    x = torch.tensor([-3.0, -0.4, 0.3, 2.5])
    for ste, expected in (("identity", [1.0, 1, 1, 1]), ("clip", [0.0, 1, 1, 0])):
        _, tangent = torch.func.jvp(
            lambda x, low, ste=ste: ops.fake_quantize(x, low, 1.0, 4, ste=ste),
            (x, torch.tensor(-1.0)),
            (torch.ones(4), torch.tensor(1.0)),
        )
        assert tangent.tolist() == expected


def test_references_on_their_own():
    x, tangent = torch.randn(2, 3, 4, 5, 5).unbind()
    _, (mean, variance) = torch.func.jvp(reference.channel_moments, (x,), (tangent,))
    torch.testing.assert_close(mean, tangent.mean((2, 3)))
    distance = x - x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(variance, 2 * (distance * tangent).mean((2, 3)))
