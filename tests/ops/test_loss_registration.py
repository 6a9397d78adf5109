"""The registered loss ops inside PyTorch's own machinery."""

import json

import pytest
import torch

from synq_fast import ops
from tests.ops.processes import results

LABELS = torch.tensor([1, 2, 0, 3])
CONSTANTS = (4.0, 3.0, 0.9)
NAMES = (
    "distillation_loss",
    "distillation_loss_with_gradient",
    "distillation_loss_backward",
    "bn_statistics_loss",
    "bn_statistics_loss_backward",
    "bn_statistics_losses",
    "bn_statistics_losses_backward",
)


def arguments(name: str, gradient: bool) -> list[tuple]:
    """Every kind of call of an op, on fresh leaves."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).requires_grad_(gradient)

    stored = torch.zeros(5), torch.ones(5)
    image = torch.randn(2, 5, 3, 3, generator=generator)
    last = image.to(memory_format=torch.channels_last).requires_grad_(gradient)
    statistics = torch.zeros(3, 5, dtype=torch.float64)
    one = torch.ones(())
    logits = leaf(4, 5), leaf(4, 5), LABELS, *CONSTANTS
    return {
        "distillation_loss": [logits],
        "distillation_loss_with_gradient": [
            (*logits, True, gradient),
            (logits[0], logits[1].detach(), *logits[2:], True, False),
        ],
        "distillation_loss_backward": [
            (one, one, torch.ones(2, 4, 5), torch.zeros(4, 5)),
            (one, None, torch.ones(1, 4, 5), torch.zeros(4, 5).half()),
        ],
        "bn_statistics_loss": [(leaf(3, 5, 4), *stored), (last, *stored)],
        "bn_statistics_loss_backward": [
            (one, one, torch.ones(3, 5, 4), statistics),
            (None, one, image.half(), statistics),
        ],
        "bn_statistics_losses": [
            ([leaf(3, 5), last], [stored[0]] * 2, [stored[1]] * 2, [0.5, 2.0])
        ],
        "bn_statistics_losses_backward": [
            (one, [torch.ones(3, 5), image], statistics.repeat(1, 2), [0.5, 2.0])
        ],
    }[name]


@pytest.mark.compile
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name):
    op = getattr(torch.ops.synq_fast, name).default
    for gradient in (False, True):
        for args in arguments(name, gradient):
            torch.library.opcheck(op, args)


def model(student, teacher, x, labels=LABELS):
    kl, ce, difficulty = ops.distillation_loss(student, teacher, labels, temperature=4.0)
    mean_loss, var_loss = ops.bn_statistics_loss(x, torch.zeros(5), torch.ones(5))
    layers = [x, student * 2], [torch.zeros(5)] * 2, [torch.ones(5)] * 2
    network = ops.bn_statistics_losses(*layers, [0.5, 2.0])
    return kl + 2 * ce + 3 * mean_loss + 4 * var_loss + network, difficulty


def leaves():
    generator = torch.Generator().manual_seed(3)
    shapes = (4, 5), (4, 5), (2, 5, 3, 3)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.compile
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_compile(backend):
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for call in (model, compiled):
        inputs = leaves()
        with ops.backend(backend):
            loss, difficulty = call(*inputs)
        results.append([loss, difficulty, *torch.autograd.grad(loss, inputs)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.compile
def test_export():
    class Module(torch.nn.Module):
        def forward(self, student, teacher, x, labels):
            return model(student, teacher, x, labels)

    inputs = (*(leaf.detach() for leaf in leaves()), LABELS)
    program = torch.export.export(Module(), inputs)
    names = {node.target for node in program.graph.nodes if node.op == "call_function"}
    library = torch.ops.synq_fast
    assert library.distillation_loss.default in names
    assert library.bn_statistics_losses.default in names
    torch.testing.assert_close(program.module()(*inputs), Module()(*inputs))


def test_inference_computes_no_gradient():
    student, teacher, _ = (leaf.detach() for leaf in leaves())
    calls = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func.name())
            return func(*args, **(kwargs or {}))

    with Record():
        ops.distillation_loss(student, teacher, LABELS)
        with torch.no_grad():
            ops.distillation_loss(student.clone().requires_grad_(), teacher, LABELS)
    assert "synq_fast::distillation_loss" in calls
    assert "synq_fast::distillation_loss_with_gradient" not in calls


def test_direct_calls_record_gradients():
    student, teacher, x = leaves()
    expected = torch.autograd.grad(model(student, teacher, x)[0], [student, teacher])
    kl, ce, _ = torch.ops.synq_fast.distillation_loss(student, teacher, LABELS, 4.0, 20.0, 0.5)
    layers = [x, student * 2], [torch.zeros(5)] * 2, [torch.ones(5)] * 2
    network, _ = torch.ops.synq_fast.bn_statistics_losses(*layers, [0.25, 1.0])
    actual = torch.autograd.grad(kl + 2 * ce + network, [student, teacher])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_second_derivatives_are_refused(which):
    student, teacher, x = leaves()
    stored = torch.zeros(5), torch.ones(5)
    loss, leaf = [
        lambda: (ops.distillation_loss(student, teacher, LABELS)[0], student),
        lambda: (ops.bn_statistics_loss(x, *stored)[1], x),
        lambda: (ops.bn_statistics_losses([x], [stored[0]], [stored[1]]), x),
    ][which]()
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        gradient.sum().backward()


PROGRAM = """
import torch
from synq_fast import ops
from tests.ops.test_loss_registration import NAMES, arguments, leaves, model

inputs = leaves()
loss, difficulty = model(*inputs)
gradients = torch.autograd.grad(loss, inputs)
student, teacher, x = inputs
stored = torch.zeros(5), torch.ones(5)
library = torch.ops.synq_fast
kl, ce, _ = library.distillation_loss(student, teacher, torch.tensor([1, 2, 0, 3]), 4.0, 20.0, 0.5)
one = library.bn_statistics_loss(x, *stored)
layers = [x, student * 2], [stored[0]] * 2, [stored[1]] * 2
several = library.bn_statistics_losses(*layers, [0.25, 1.0])
total = kl + 2 * ce + 3 * one[0] + 4 * one[1] + several[0]
gradients += torch.autograd.grad(total, inputs)
print(ops.available_backends()["cpu"])
values = loss, difficulty, *gradients
print([round(value.double().square().sum().item(), 4) for value in values])
"""

CHECKS = """
for name in NAMES:
    op = getattr(torch.ops.synq_fast, name).default
    for args in arguments(name, True):
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))
"""


@pytest.mark.slow
def test_without_the_extension():
    """The same program with and without native kernels: Python registrations take over."""
    bare, native = results(PROGRAM, CHECKS)
    assert json.loads(bare) == pytest.approx(json.loads(native), rel=1e-4)
