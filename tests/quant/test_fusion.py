"""Folded and fused networks compute what the traced ones do."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from synq_fast.engine.student import build_student
from synq_fast.quant import (
    ActivationQuantizer,
    BitWidths,
    Tapped,
    energy_name,
    find_structure,
    folded,
    fused,
    held_weights,
    observing,
    simplified,
    trace,
)
from synq_fast.quant.fusion import ChannelEnergy, FrozenNorm, QuantizedActivation
from synq_fast.quant.settings import Quantization
from tests.tiny import SHAPE, TinyNet, randomize_statistics, tiny_images


class Plain(nn.Module):
    """Two normalised convolutions: one before a ReLU6 function, one read twice."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(SHAPE[0], 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4, affine=affine)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4, affine=affine)

    def forward(self, x):
        x = functional.relu6(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        return (functional.relu(y) + y).mean((2, 3))


def round_norms(module: nn.Module) -> nn.Module:
    """Statistics with which a BatchNorm rounds alike, however it is written."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var.fill_(1 - norm.eps)
            norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator) / 8)
            if norm.affine:
                powers = torch.randint(-1, 2, norm.weight.shape, generator=generator)
                norm.weight.data.copy_(2.0**powers)
                norm.bias.data.copy_(torch.randn(norm.num_features, generator=generator) / 8)
    return module


def calls(module, kind) -> list[str]:
    modules = dict(module.named_modules())
    return [
        node.name
        for node in module.graph.nodes
        if node.op == "call_module" and isinstance(modules[node.target], kind)
    ]


def student_of(module: nn.Module, **recipe):
    torch.manual_seed(0)
    graph = trace(round_norms(module).eval(), tiny_images(2))
    student = build_student(graph, BitWidths(4, 4), Quantization(**recipe)).eval()
    with observing(student), torch.no_grad():
        student(tiny_images(4))
    return student


@pytest.mark.parametrize("make", [TinyNet, Plain, lambda: Plain(affine=False)])
@pytest.mark.parametrize("ste", ["identity", "clip"])
def test_fused_network_has_the_same_outputs_and_gradients(make, ste):
    student = student_of(make(), ste=ste)
    images = tiny_images(5).requires_grad_()
    leaves = [images, *student.parameters()]
    expected = student(images)
    expected_gradients = torch.autograd.grad(expected.square().sum(), leaves)

    network = fused(student)
    with held_weights(network):
        logits = network(images)
        gradients = torch.autograd.grad(logits.square().sum(), leaves)
    assert torch.equal(logits, expected)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [TinyNet, Plain, lambda: Plain(affine=False)])
def test_energies_are_those_of_the_named_values(make):
    student = student_of(make())
    bodies = find_structure(student, tiny_images(2)).bodies
    images = tiny_images(5)
    leaves = list(student.parameters())

    def result(network, names, energies):
        view = Tapped(network, names)(images)
        values = energies(view.features)
        slopes = torch.autograd.grad(sum(v.sin().sum() for v in values), leaves, allow_unused=True)
        return values, [slope for slope in slopes if slope is not None]

    names = [energy_name(name) for name in bodies]
    expected, wanted = result(student, bodies, lambda f: [v.square().mean((2, 3)) for v in f])
    values, slopes = result(fused(student, (), bodies), names, list)
    for found, value in zip((*values, *slopes), (*expected, *wanted), strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        frozen = Tapped(folded(student, bodies, bodies), names)(images).features
    for found, value in zip(frozen, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5)


def test_energies_of_channels_far_from_zero():
    # Expanding (w x + b)^2 into moments about zero gave 0.5, 1.0 and negative numbers here.
    torch.manual_seed(0)
    x = 10 + 1e-3 * torch.randn(2, 3, 16, 16)
    norm = nn.BatchNorm2d(3).eval()
    norm.running_mean.copy_(x.mean((0, 2, 3)) + torch.tensor([2e-4, 0, -3e-4]))
    norm.running_var.copy_(x.var((0, 2, 3), correction=0))
    norm.weight.data.copy_(torch.tensor([0.8, 1.0, 1.3]))
    with torch.no_grad():
        expected = copy.deepcopy(norm).double()(x.double()).square().mean((2, 3))
        found = ChannelEnergy(FrozenNorm(norm))(x)
    # What is left is the rounding of the mean itself, one part in 1e7 of 10.
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=0)


def test_fused_network_follows_the_students_parameters_and_ranges():
    student = student_of(TinyNet())
    network = fused(student)
    with torch.no_grad():
        for norm in student.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.mul_(2)
        for quantizer in student.modules():
            if isinstance(quantizer, ActivationQuantizer):
                quantizer.range_max.mul_(0.5)
    assert torch.equal(network(tiny_images(3)), student(tiny_images(3)))


def test_what_is_read_elsewhere_stays():
    student = student_of(Plain())
    # bn2 is read twice: before the ReLU and in the sum.
    assert calls(fused(student), nn.BatchNorm2d) == ["bn2"]
    assert calls(fused(student, keep={"bn1"}), nn.BatchNorm2d) == ["bn1", "bn2"]
    assert calls(student, nn.BatchNorm2d) == ["bn1", "bn2"]


def test_learned_ranges_are_not_fused():
    student = student_of(TinyNet(), learn_ranges=True)
    assert calls(fused(student), nn.BatchNorm2d) == calls(student, nn.BatchNorm2d)


@pytest.mark.parametrize("make", [TinyNet, Plain, lambda: Plain(affine=False)])
def test_folded_network_has_the_same_outputs_and_input_gradients(make):
    torch.manual_seed(0)
    teacher = trace(randomize_statistics(make()).eval().requires_grad_(False), tiny_images(2))
    images = tiny_images(5).requires_grad_()
    expected = teacher(images)
    wanted = torch.autograd.grad(expected.square().sum(), images)[0]
    network = folded(teacher)
    assert calls(network, nn.BatchNorm2d) == [] and calls(teacher, nn.BatchNorm2d)
    logits = network(images)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    gradient = torch.autograd.grad(logits.square().sum(), images)[0]
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [TinyNet, Plain, lambda: Plain(affine=False)])
def test_simplified_network_has_the_same_values_and_input_gradients(make):
    torch.manual_seed(0)
    teacher = trace(randomize_statistics(make()).eval().requires_grad_(False), tiny_images(2))
    images = 4 * tiny_images(5)
    names = ["conv1", "conv2"]

    def result(network):
        x = images.clone().requires_grad_()
        view = Tapped(network, names)(x)
        total = sum(v.sin().sum() for v in (view.logits, *view.features))
        return view.logits, *view.features, torch.autograd.grad(total, x)[0]

    network = simplified(teacher, names)
    assert calls(network, nn.BatchNorm2d) == [] and calls(teacher, nn.BatchNorm2d)
    for found, wanted in zip(result(network), result(teacher), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_folding_leaves_kept_values_alone():
    teacher = trace(randomize_statistics(Plain()).eval().requires_grad_(False), tiny_images(2))
    network = folded(teacher, keep={"conv2"})
    assert calls(network, nn.BatchNorm2d) == ["bn2"]

    def read(module, name):
        seen = {}
        interpreter = torch.fx.Interpreter(module)
        original = interpreter.run_node
        interpreter.run_node = lambda node: seen.setdefault(node.name, original(node))
        interpreter.run(tiny_images(2))
        return seen[name]

    # A folded pair goes by the BatchNorm's name, and no ReLU has written over what is kept.
    torch.testing.assert_close(
        read(folded(teacher, keep={"bn1"}), "bn1"), read(teacher, "bn1"), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "joined"), [("resnet18", 17), ("mobilenet_v2", 35), ("vgg11_bn", 8)]
)
def test_real_architectures_are_fused_everywhere(name, joined):
    torch.manual_seed(0)
    module = getattr(torchvision.models, name)(weights=None, num_classes=5)
    images = torch.randn(2, 3, 32, 32)
    teacher = trace(round_norms(module).eval().requires_grad_(False), images)
    student = build_student(teacher, BitWidths(4, 4), Quantization()).eval()
    with observing(student), torch.no_grad():
        student(images)
    network = fused(student)
    assert len(calls(network, QuantizedActivation)) == joined
    with torch.no_grad():
        assert torch.equal(network(images), student(images))
        expected = teacher(images)
        for other in (folded(teacher), simplified(teacher)):
            error = (other(images) - expected).norm()
            assert error <= 1e-4 * expected.norm()
