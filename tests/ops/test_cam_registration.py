"""The registered class activation map ops inside PyTorch's own machinery."""

import math

import pytest
import torch

from synq_fast import ops
from synq_fast.ops._registry import OPS
from tests.ops.backends import require
from tests.ops.processes import NOT_BUILT, run
from tests.tolerances import assert_close

NAMES = (
    "grad_cam",
    "grad_cam_backward",
    "cam_alignment_loss",
    "cam_alignment_loss_backward",
)
A, G = torch.rand(2, 2, 5, 3, 4)
TARGET = torch.rand(2, 1, 8, 6)


def arguments(name, a, g):
    last = a.stride(1) == 1
    weights, coarse = torch.rand(2, 5), torch.rand(2, 1, 3, 4)
    return {
        "grad_cam": [
            (a, g, torch.rand(2) if kind == 1 else None, kind, 8, 6, 1e-10, 1e-10)
            for kind in range(4)
        ]
        + [(a, g, None, 0, 8, 6, -math.inf, 1e-10)],
        "grad_cam_backward": [
            (TARGET, weights if kind < 2 else g, coarse, kind, 0.0, 1e-10, last, a.dtype)
            for kind in range(4)
        ],
        "cam_alignment_loss": [
            (a, g, TARGET, clamp, 1e-10, flag)
            for clamp in (1e-10, -math.inf)
            for flag in (False, True)
        ],
        "cam_alignment_loss_backward": [(torch.tensor(0.7), weights, coarse, last, a.dtype)],
    }[name]


@pytest.mark.compile
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [(torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)],
    ids=str,
)
def test_opcheck(name, dtype, layout):
    a, g = (x.to(dtype, memory_format=layout) for x in (A, G))
    op = getattr(torch.ops.synq_fast, name).default
    for requires_grad in (False, True) if "backward" not in name else (False,):
        for args in arguments(name, a.detach().requires_grad_(requires_grad), g):
            torch.library.opcheck(op, args)


@pytest.mark.parametrize("name", NAMES)
def test_the_fallback_equals_the_kernels(name):
    """What runs where no kernel is built gives the same values, shapes and strides."""
    require("cpu")
    for layout in (torch.contiguous_format, torch.channels_last):
        a, g = (x.to(memory_format=layout) for x in (A, G))
        op = OPS[name]
        for args in arguments(name, a, g):
            actual = getattr(torch.ops.synq_fast, name)(*args)
            expected = op.reference(*args)
            if isinstance(actual, torch.Tensor):
                actual, expected = [actual], [expected]
            for mine, theirs in zip(actual, expected, strict=True):
                assert mine.stride() == theirs.stride()
                scale = max(1.0, theirs.abs().max().item() if theirs.numel() else 1.0)
                assert_close(mine, theirs, "cam_map", factor=scale)


def model(a, g, target):
    cam = ops.layer_cam(a * 2, g, (8, 6)) + ops.grad_cam(a, g, (8, 6))
    cam = cam + ops.grad_cam(a, -g, (8, 6), clamp=None)
    tokens, token_gradients = (x.flatten(2).transpose(1, 2).contiguous() for x in (a, g))
    loss = ops.cam_alignment_loss(tokens, token_gradients, target, grid=(3, 4))
    return cam.square().mean() + loss


@pytest.mark.compile
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for copies in (1, 2):
        gradients = []
        inputs = [torch.cat([x] * copies) for x in (A, G, TARGET)]
        for call in (model, compiled):
            leaf = inputs[0].clone().requires_grad_()
            call(leaf, *inputs[1:]).backward()
            gradients.append(leaf.grad)
        assert torch.equal(*gradients)


@pytest.mark.compile
def test_export():
    class Module(torch.nn.Module):
        def forward(self, a, g):
            return ops.grad_cam(a, g - 0.5, (8, 6), clamp=None)

    batch = torch.export.Dim("batch")
    program = torch.export.export(Module(), (A, G), dynamic_shapes=({0: batch}, {0: batch}))
    names = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert torch.ops.synq_fast.grad_cam.default in names
    a, g = torch.rand(2, 7, 5, 3, 4)
    assert torch.equal(program.module()(a, g), Module()(a, g))


def test_a_second_derivative_is_an_error():
    for function in (
        lambda leaf: ops.grad_cam(leaf, G, (8, 6)).square().sum(),
        lambda leaf: ops.cam_alignment_loss(leaf, G, TARGET) ** 2,
    ):
        leaf = A.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
        with pytest.raises(NotImplementedError, match="differentiated once"):
            gradient.sum().backward()


def test_nothing_large_is_saved():
    leaf, g = torch.rand(2, 64, 7, 7, requires_grad=True), torch.rand(2, 64, 7, 7)
    target = torch.rand(2, 1, 32, 32)
    for function in (
        lambda: ops.grad_cam(leaf, g, (32, 32)),
        lambda: ops.cam_alignment_loss(leaf, g, target),
    ):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda value: value):
            function()
        assert sorted(x.numel() for x in saved) == [2 * 49, 2 * 64]


def test_gradient_keeps_the_layout():
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = A.clone(memory_format=layout).requires_grad_()
        ops.cam_alignment_loss(leaf, G, TARGET).backward()
        assert leaf.grad.stride() == leaf.stride()


def test_loss_without_gradient_skips_it():
    op = torch.ops.synq_fast.cam_alignment_loss
    leaf = A.clone().requires_grad_()
    loss, _, slope = op(leaf, G, TARGET, 1e-10, 1e-10, False)
    assert not loss.requires_grad
    assert slope.numel() == 0
    with torch.no_grad():
        assert torch.equal(ops.cam_alignment_loss(leaf, G, TARGET), loss)


PROGRAM = """
import torch
from tests.ops import test_cam_registration as tests
from tests.ops.test_cam_registration import A, G, NAMES, TARGET, arguments
library = torch.ops.synq_fast
for name in NAMES[::2]:
    leaf = A.clone().requires_grad_()
    for args in arguments(name, leaf, G):
        torch.library.opcheck(getattr(library, name).default, args)
tests.test_loss_without_gradient_skips_it()
leaf = A.clone().requires_grad_()
library.cam_alignment_loss(leaf, G, TARGET, 1e-10, 1e-10, True)[0].backward()
assert leaf.grad.any()
"""


@pytest.mark.slow
@pytest.mark.compile
def test_without_the_extension():
    result = run(NOT_BUILT + PROGRAM)
    assert result.returncode == 0, result.stderr
