"""What the filter, map, loss and range ops have in common: compiling, autocast, backends, twins."""

import inspect

import pytest
import torch

from synq_fast import ops, reference
from synq_fast.ops import BackendUnavailableError
from tests.tolerances import assert_close

LABELS = torch.tensor([1, 2, 0, 3])


def _tracked(x):
    state = torch.zeros(()), torch.zeros(()), torch.zeros((), dtype=torch.int64)
    ops.update_range(x, *state)
    ops.update_range(x * 2, *state)
    return ops.read_range(*state)


# Per op: a function of its differentiable inputs, and their shapes.
CASES = {
    "update_range": (_tracked, [(4, 5)]),
    "search_range": (lambda x: ops.search_range(x, 3, candidates=6), [(4, 5)]),
    "low_pass": (lambda x: ops.low_pass(x, 2.0), [(2, 3, 6, 7)]),
    "grad_cam": (lambda a, g: ops.grad_cam(a, g, (7, 8)), [(2, 3, 4, 4)] * 2),
    "grad_cam_plus_plus": (
        lambda a, g, s: ops.grad_cam_plus_plus(a, g, s, (7, 8)),
        [(2, 3, 4, 4), (2, 3, 4, 4), (2,)],
    ),
    "layer_cam": (lambda a, g: ops.layer_cam(a, g, (7, 8)), [(2, 3, 4, 4)] * 2),
    "hires_cam": (lambda a, g: ops.hires_cam(a, g, (7, 8)), [(2, 3, 4, 4)] * 2),
    "cam_alignment_loss": (ops.cam_alignment_loss, [(2, 3, 4, 4), (2, 3, 4, 4), (2, 1, 8, 8)]),
    "distillation_loss": (lambda s, t: ops.distillation_loss(s, t, LABELS), [(4, 5)] * 2),
    "bn_statistics_loss": (ops.bn_statistics_loss, [(3, 4, 5, 5), (4,), (4,)]),
    "channel_moments": (ops.channel_moments, [(3, 4, 5, 5)]),
    "patch_similarity_entropy": (ops.patch_similarity_entropy, [(2, 5, 4)]),
    "bn_statistics_losses": (
        lambda x, y, m, v: ops.bn_statistics_losses([x, y], [m, m], [v, v], [0.5, 2.0]),
        [(3, 4, 5, 5), (2, 4, 3), (4,), (4,)],
    ),
}


def run(function, inputs):
    """Results, and gradients of their summed squares in the inputs that get one."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    total = sum(r.float().square().sum() for r in results)
    grads = []
    if total.requires_grad:
        grads = [g for g in torch.autograd.grad(total, leaves, allow_unused=True) if g is not None]
    return [r.detach() for r in results], grads


@pytest.fixture(params=CASES)
def case(request):
    function, shapes = CASES[request.param]
    generator = torch.Generator().manual_seed(1)
    return function, [torch.rand(shape, generator=generator) for shape in shapes]


@pytest.mark.compile
def test_compiles_in_one_graph(case):
    function, inputs = case
    torch.compiler.reset()
    expected, expected_grads = run(function, inputs)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    actual, grads = run(compiled, inputs)
    assert len(grads) == len(expected_grads)
    for value, eager in zip(actual + grads, expected + expected_grads, strict=True):
        assert_close(value, eager, "compiled", factor=max(1.0, eager.abs().max().item()))


def test_autocast_changes_nothing(case):
    function, inputs = case
    expected, expected_grads = run(function, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, grads = run(function, inputs)
    for value, plain in zip(actual + grads, expected + expected_grads, strict=True):
        assert value.dtype == plain.dtype
        assert torch.equal(value, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_computed_in_float32(case, dtype):
    function, inputs = case
    if function is CASES["low_pass"][0]:
        pytest.skip("low_pass returns the type of its input; tested in test_low_pass.py")
    inputs = [x.to(dtype) for x in inputs]
    for value, expected in zip(
        run(function, inputs)[0], run(function, [x.float() for x in inputs])[0], strict=True
    ):
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)


def test_unavailable_backend_is_an_error(case):
    function, inputs = case
    with pytest.raises(BackendUnavailableError), ops.backend("triton"):
        function(*inputs)


def test_reference_backend_is_the_reference(case):
    function, inputs = case
    # The divergence is multiplied by alpha T^2 = 8000; see kl_per_factor in the tolerances.
    factor = 1200.0 if function is CASES["distillation_loss"][0] else 1.0
    with ops.backend("reference"):
        actual = run(function, inputs)[0]
    for value, expected in zip(actual, run(function, inputs)[0], strict=True):
        assert_close(value, expected, "compiled", factor=factor)


@pytest.mark.parametrize("name", reference.__all__)
def test_reference_has_the_same_signature(name):
    public = inspect.signature(getattr(ops, name))
    twin = inspect.signature(getattr(reference, name))
    assert [(p.name, p.default, p.kind) for p in public.parameters.values()] == [
        (p.name, p.default, p.kind) for p in twin.parameters.values()
    ]


@pytest.mark.parametrize("name", reference.__all__)
def test_public_names_explain_themselves(name):
    documentation = getattr(ops, name).__doc__
    assert "Args:" in documentation
    assert "Raises:" in documentation
