"""Blocks: cuts of a network where one value alone is alive."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from synq_fast.graph import called_module, trace
from synq_fast.graph.blocks import Block, find_blocks, subnetwork
from synq_fast.models import load_teacher
from tests.tiny import tiny_images, tiny_net


def blocks_of(module: nn.Module, images: torch.Tensor):
    graph = trace(module.eval(), images)
    return graph, find_blocks(graph)


def test_stem_residual_block_and_head():
    _, blocks = blocks_of(tiny_net(), tiny_images(2))
    assert blocks == (Block("x", "relu"), Block("relu", "relu_1"), Block("relu_1", "fc"))


@pytest.mark.parametrize("name", ["digits-resnet20", "cifar10-resnet20", "cifar100-resnet20kd"])
def test_one_block_for_each_residual_one(name):
    teacher = load_teacher(name, weights="random")
    _, blocks = blocks_of(teacher.module, teacher.example())
    assert len(blocks) == 11


class Branches(nn.Module):
    """Two branches that meet in a sum, then a convolution whose value is pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.last, self.head = nn.Conv2d(4, 5, 3, 2, 1), nn.Linear(5, 2)

    def forward(self, x):
        y = self.one(x).relu() + self.two(x).sigmoid()
        z = functional.max_pool2d(self.last(y).relu(), 2)
        return self.head(z.mean((2, 3))).softmax(1)


def test_branches_stay_together_and_pooling_belongs_to_its_reader():
    _, blocks = blocks_of(Branches(), torch.randn(2, 3, 16, 16))
    assert blocks == (Block("x", "add"), Block("add", "relu_1"), Block("relu_1", "softmax"))


class Loop(nn.Module):
    """A value of the image that is read again at the end: nothing can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))

    def forward(self, x):
        return self.convolutions(x) * x.mean()


def test_a_value_that_is_read_far_behind_forbids_cuts():
    _, blocks = blocks_of(Loop(), torch.randn(2, 3, 4, 4))
    assert blocks == (Block("x", "mul"),)


class Constants(nn.Module):
    """A parameter that the forward reads is alive everywhere, and no value of the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.factor = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x):
        factor = self.factor.exp()
        return self.second(self.first(x).relu() * factor) * factor.mean()


def test_parameters_forbid_no_cut():
    _graph, blocks = blocks_of(Constants(), torch.randn(2, 3, 4, 4))
    assert len(blocks) == 2
    assert blocks[0].exit == "mul" and blocks[1].entry == "mul"


NETWORKS = {
    "tiny": (tiny_net, (2, 8, 8)),
    "branches": (Branches, (3, 16, 16)),
    "loop": (Loop, (3, 4, 4)),
    "constants": (Constants, (3, 4, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_blocks_in_a_row_are_the_network(name):
    make, shape = NETWORKS[name]
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    graph, blocks = blocks_of(make(), images)
    value, seen = images, 0
    for block in blocks:
        part = subnetwork(graph, block.entry, block.exit)
        layers = [
            n for n in part.graph.nodes if isinstance(called_module(part, n), nn.Conv2d | nn.Linear)
        ]
        assert layers
        seen += len(layers)
        value = part(value)
    assert torch.equal(value, graph(images))
    assert seen == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in graph.modules())


def test_parts_share_the_networks_modules():
    graph, blocks = blocks_of(tiny_net(), tiny_images(2))
    part = subnetwork(graph, blocks[1].entry, blocks[1].exit)
    assert part.conv2 is graph.conv2 and not hasattr(part, "fc")
    assert not part.training
