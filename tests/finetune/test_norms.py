"""BatchNorm statistics, estimated again: known shifts are undone, everything else stays."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from synq_fast.errors import ModelError
from synq_fast.finetune.norms import correct, estimate_norms
from synq_fast.quant import BitWidths, find_structure, trace
from tests.tiny import CLASSES, SHAPE, randomize_statistics, tiny_images, tiny_pair, tiny_recipe

IMAGES = tiny_images(32, seed=4)


class Net(nn.Module):
    """Two normalised convolutions; without biases in front of them nothing could be shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(SHAPE[0], 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6, affine=False)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


def pair():
    """A traced network, a copy of it, and the names of its BatchNorms."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
    teacher = trace(randomize_statistics(net).eval().requires_grad_(False), IMAGES[:2])
    return teacher, copy.deepcopy(teacher), find_structure(teacher, IMAGES[:2]).norms


def shift(convolution: nn.Conv2d, factor: float, summand: float) -> None:
    """Change what a convolution gives to ``factor * y + summand``, channel by channel."""
    steps = torch.linspace(1, factor, convolution.out_channels)
    convolution.weight.data.mul_(steps[:, None, None, None])
    convolution.bias.data.mul_(steps).add_(torch.linspace(-summand, summand, len(steps)))


@pytest.mark.parametrize("factor", [1.0, 0.5, 3.0])
def test_a_known_shift_of_every_layer_is_undone(factor):
    teacher, student, norms = pair()
    for layer in (student.conv1, student.conv2):
        shift(layer, factor, 2.0)
    wanted = teacher(IMAGES)
    assert (student(IMAGES) - wanted).abs().max() > 0.1
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    assert estimate_norms(student, teacher, norms, IMAGES) == 2
    torch.testing.assert_close(student(IMAGES), wanted, rtol=1e-3, atol=1e-3)
    # Also on other images: it is undone, not hidden.
    other = tiny_images(8, seed=11)
    torch.testing.assert_close(student(other), teacher(other), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    weights = (n for n in before if "running" not in n)
    shifted = copy.deepcopy(teacher)
    for layer in (shifted.conv1, shifted.conv2):
        shift(layer, factor, 2.0)
    for name in weights:
        assert torch.equal(student.state_dict()[name], shifted.state_dict()[name]), name


def test_an_unchanged_network_stays_as_it_is():
    teacher, student, norms = pair()
    estimate_norms(student, teacher, norms, IMAGES)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, teacher.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_means_alone():
    teacher, student, norms = pair()
    shift(student.conv1, 2.0, 1.0)
    estimate_norms(student, teacher, norms, IMAGES, spread=False)
    assert torch.equal(student.bn1.running_var, teacher.bn1.running_var)
    for network in (student, teacher):
        network.seen = network.bn1(network.conv1(IMAGES))
    means, stds = (
        [f(n.seen, (0, 2, 3)) for n in (student, teacher)] for f in (torch.mean, torch.std)
    )
    torch.testing.assert_close(*means, rtol=1e-4, atol=1e-4)
    assert (stds[0] - stds[1]).abs().max() > 0.1


def moments_of_outputs(network, norms, images):
    outputs = {}
    hooks = [
        getattr(network, name).register_forward_hook(
            lambda _, __, y, name=name: outputs.update({name: y.double()})
        )
        for name in norms
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    return [torch.stack([y.mean((0, 2, 3)), y.std((0, 2, 3))]) for y in outputs.values()]


@torch.no_grad()
def test_outputs_of_a_quantized_network_have_the_float_ones_moments():
    teacher, student, structure = tiny_pair(tiny_recipe(), BitWidths(2, 2))
    wanted = moments_of_outputs(teacher, structure.norms, IMAGES)
    before = moments_of_outputs(student, structure.norms, IMAGES)
    assert any((a - b).abs().max() > 0.05 for a, b in zip(before, wanted, strict=True))
    assert estimate_norms(student, teacher, structure.norms, IMAGES) == 2
    after = moments_of_outputs(student, structure.norms, IMAGES)
    for found, expected in zip(after, wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def moments(mean, variance):
    return torch.tensor([mean]), torch.tensor([variance])


@pytest.mark.parametrize(
    ("found", "wanted", "deviation"),
    [
        # A channel that is constant in both networks keeps its scale.
        ((3.0, 0.0), (1.0, 0.0), 1.0),
        # One that quantization made constant is not blown up without a limit, nor is its opposite.
        ((3.0, 0.0), (1.0, 9.0), 0.25),
        ((3.0, 9.0), (1.0, 0.0), 4.0),
        ((3.0, 4.0), (1.0, 1.0), 2.0),
    ],
)
def test_means_agree_whatever_becomes_of_the_spread(found, wanted, deviation):
    norm = nn.BatchNorm2d(1, eps=1e-5).eval()
    norm.running_mean.fill_(0.5)
    float_mean = norm(torch.full((1, 1, 1, 1), wanted[0])).item()
    correct(norm, moments(*found), moments(*wanted))
    assert norm.running_var.sqrt().item() == pytest.approx(deviation, rel=1e-3)
    assert norm(torch.full((1, 1, 1, 1), found[0])).item() == pytest.approx(float_mean, rel=1e-4)


class Shared(nn.Module):
    """One BatchNorm of two convolutions, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(SHAPE[0], 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(4, 4, 3, padding=1)
        self.both, self.own = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.both(self.conv2(functional.relu(self.both(self.conv1(x)))))
        return self.own(self.conv3(functional.relu(x))).mean((2, 3))


def test_a_batchnorm_of_two_calls_stays():
    teacher = trace(Shared().eval().requires_grad_(False), IMAGES[:2])
    student, norms = copy.deepcopy(teacher), find_structure(teacher, IMAGES[:2]).norms
    for layer in (student.conv1, student.conv3):
        shift(layer, 2.0, 1.0)
    assert estimate_norms(student, teacher, norms, IMAGES) == 1
    assert torch.equal(student.both.running_mean, teacher.both.running_mean)
    assert not torch.equal(student.own.running_mean, teacher.own.running_mean)


def test_a_network_without_batchnorms_is_refused():
    teacher, student, _ = pair()
    with pytest.raises(ModelError, match="without the stage norms"):
        estimate_norms(student, teacher, (), IMAGES)
