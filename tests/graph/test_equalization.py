"""Channels of one range before depthwise convolutions."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from synq_fast.engine.student import build_student
from synq_fast.graph.equalization import (
    DEVIATIONS,
    Pair,
    channel_scales,
    equalizable,
    equalized,
)
from synq_fast.graph.trace import trace
from synq_fast.quant import BitWidths, held_weights, observing
from synq_fast.quant.settings import Quantization
from tests.tiny import randomize_statistics

CHANNELS = 12


class Inverted(nn.Module):
    """Three depthwise convolutions, behind ReLU6, ReLU and nothing."""

    def __init__(self, bound=functional.relu6) -> None:
        super().__init__()
        self.bound = bound
        self.stem, self.norm = nn.Conv2d(3, CHANNELS, 1), nn.BatchNorm2d(CHANNELS)
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False)
        self.norm1 = nn.BatchNorm2d(CHANNELS)
        self.second = nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, groups=CHANNELS)
        self.norm2 = nn.BatchNorm2d(2 * CHANNELS)
        self.third = nn.Conv2d(2 * CHANNELS, 2 * CHANNELS, 1, groups=2 * CHANNELS)
        self.head = nn.Linear(2 * CHANNELS, 5)

    def forward(self, x):
        x = self.first(self.bound(self.norm(self.stem(x))))
        x = self.norm2(self.second(functional.relu(self.norm1(x))))
        return self.head(self.third(x).mean((2, 3)))


def uneven(net: nn.Module) -> nn.Module:
    """Channels of very different ranges, some of negative factors."""
    torch.manual_seed(0)
    randomize_statistics(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            spread = torch.exp(1.2 * torch.randn(module.num_features))
            module.weight.data = spread * torch.randn(module.num_features).sign()
            module.bias.data = spread * torch.randn(module.num_features)
    return net.eval().requires_grad_(False)


def settled(net: nn.Module) -> nn.Module:
    """With the statistics that its values have."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    net(images(64))
    return net.eval()


def traced(net: nn.Module, size: int = 8):
    return trace(net, torch.zeros(1, 3, size, size))


def images(count: int = 4, size: int = 8):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_behind_relu_and_linear_values_the_function_stays():
    net = uneven(Inverted(functional.relu))
    before = copy.deepcopy(net.state_dict())
    graph = traced(net)
    result = equalized(graph)
    assert equalizable(graph) == [
        Pair("norm", float("inf"), "first"),
        Pair("norm1", float("inf"), "second"),
        Pair("norm2", None, "third"),
    ]
    wanted = graph(images())
    torch.testing.assert_close(result(images()), wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max())
    assert [n.name for n in result.graph.nodes] == [n.name for n in graph.graph.nodes]
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert not torch.equal(result.get_submodule("first").weight, net.first.weight)
    for name in ("norm", "norm1", "norm2"):
        norm = result.get_submodule(name)
        mean = norm.bias.abs() if name == "norm2" else norm.bias
        ceiling = mean + DEVIATIONS * norm.weight.abs()
        torch.testing.assert_close(ceiling, ceiling.max().expand_as(ceiling))


def test_relu6_ends_where_a_channel_does():
    net = uneven(Inverted())
    graph = traced(net)
    result = equalized(graph)
    x = images(64)
    values = net.norm(net.stem(x))
    scale = channel_scales(net.norm.weight, net.norm.bias, 6.0).float()[:, None, None]
    assert (scale < 0.7).any() and (scale == 1).any()
    torch.testing.assert_close(
        functional.relu6(result.get_submodule("norm")(net.stem(x))) * scale,
        torch.minimum(values.relu(), 6 * scale),
    )
    # By the statistics of the values themselves, next to nothing lies beyond eight deviations.
    torch.testing.assert_close(equalized(traced(settled(net)))(x), net(x), rtol=1e-4, atol=1e-4)


def test_scales_are_ranges_over_the_widest():
    deviation, mean = torch.tensor([1.0, -0.5, 0.0, 1e-9]), torch.tensor([2.0, -1.0, -1.0, 0.0])
    found = channel_scales(deviation, mean, float("inf"))
    assert found.tolist() == pytest.approx([1.0, 0.3, 2**-10, 2**-10])
    assert channel_scales(deviation, mean, 6.0).tolist() == pytest.approx(
        [1.0, 0.5, 2**-10, 2**-10]
    )
    assert channel_scales(deviation, mean, None).tolist() == pytest.approx([1.0, 0.5, 0.1, 2**-10])
    nothing = channel_scales(torch.zeros(2), torch.tensor([-1.0, 0.0]), float("inf"))
    assert nothing.tolist() == [1.0, 1.0]


class Shared(Inverted):
    """What others read as well, or what is called twice, stays."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "tied weights":
            self.other = nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS, bias=False)
            self.other.weight = self.first.weight

    def forward(self, x):
        y = self.norm(self.stem(x))
        x = functional.relu6(y)
        if self.kind == "norm read twice":
            x = self.first(x) + y
        elif self.kind == "relu read twice":
            x = self.first(x) + x
        elif self.kind == "reader called twice":
            x = self.first(self.first(x))
        elif self.kind == "norm called twice":
            x = self.first(functional.relu6(self.norm(x)))
        elif self.kind == "weight read":
            x = self.first(x) * self.first.weight.mean()
        else:
            x = functional.pad(self.other(self.first(x)), (1, 1, 1, 1))
        return self.head(torch.cat([x, x], 1).mean((2, 3)))


@pytest.mark.parametrize(
    "kind",
    [
        "norm read twice", "relu read twice", "reader called twice", "norm called twice",
        "weight read", "tied weights",
    ],
)  # fmt: skip
def test_what_others_read_stays(kind):
    graph = traced(uneven(Shared(kind)))
    assert equalizable(graph) == []
    assert equalized(graph) is graph


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.SiLU(),
                      nn.Conv2d(4, 4, 1, groups=4)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False),
                      nn.Conv2d(4, 4, 1, groups=4)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(),
                      nn.Conv2d(4, 4, 1, groups=2)),
        nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1)),
    ],
    ids=["dense", "silu", "no factors", "grouped", "one channel"],
)  # fmt: skip
def test_other_networks_stay(net):
    graph = traced(net.eval())
    assert equalized(graph) is graph


@pytest.mark.parametrize(("name", "count"), [("mobilenet_v2", 17), ("shufflenet_v2_x0_5", 16)])
def test_networks_of_torchvision(name, count):
    net = uneven(getattr(torchvision.models, name)(num_classes=7))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data /= 3
            module.bias.data /= 3
    graph = traced(net, 64)
    assert len(equalizable(graph)) == count
    wanted, found = graph(images(2, 64)), equalized(graph)(images(2, 64))
    # Random statistics are not those of the values: ReLU6 may cut a few.
    assert (found - wanted).square().mean() < 0.01 * wanted.var()


def test_one_range_then_serves_all_channels():
    """Rounding errors of activations fall; weights have the codes that they had."""
    net = settled(uneven(Inverted(functional.relu)))
    graph = traced(net)
    errors, codes = [], []
    for of in (graph, equalized(graph)):
        student = build_student(of, BitWidths(4, 4), Quantization(placement="all_inputs"))
        with torch.no_grad(), observing(student), held_weights(student):
            student(images(32))
        errors.append((student(images(32)) - graph(images(32))).square().mean())
        weight, layer = of.get_submodule("first").weight, student.get_submodule("first")
        codes.append((layer.derive() / weight.abs().amax((1, 2, 3), keepdim=True)).detach())
    assert errors[1] < 0.7 * errors[0]
    torch.testing.assert_close(codes[1], codes[0])
