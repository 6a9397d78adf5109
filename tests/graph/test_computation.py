"""What a structure tells apart."""

import json

import pytest
import torch
from torch import nn

from synq_fast.engine.identity import weights_hash
from synq_fast.graph.computation import computation, difference
from synq_fast.quant import trace
from tests.tiny import tiny_images, tiny_net

PAIRS = torch.zeros(2, 2)


def traced(edit=lambda net: None):
    net = tiny_net()
    edit(net)
    return trace(net, tiny_images(2))


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.net, self.scale = tiny_net(), scale

    def forward(self, x):
        return self.net(x * self.scale)


CHANGES = {
    "stride": lambda net: setattr(net.conv1, "stride", (2, 2)),
    "padding": lambda net: setattr(net.conv1, "padding", (0, 0)),
    "padding_mode": lambda net: setattr(net.conv2, "padding_mode", "reflect"),
    "eps": lambda net: setattr(net.bn1, "eps", 1e-3),
    "class": lambda net: setattr(net, "relu", nn.ReLU6()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_settings_that_the_code_does_not_show(change):
    first, second = traced(), traced(CHANGES[change])
    found = difference(json.loads(json.dumps(computation(first))), computation(second))
    assert found is not None and f": {change} is " in found
    assert difference(computation(first), computation(traced())) is None
    assert weights_hash(first) == weights_hash(traced()) != weights_hash(second)


def test_numbers_in_the_code():
    first, second = (computation(trace(Scaled(scale), tiny_images(2))) for scale in (2.0, 3.0))
    found = difference(first, second)
    assert found is not None and "2.0" in found and "3.0" in found


def test_a_node_too_many():
    longer = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    found = difference(computation(trace(longer[:1], PAIRS)), computation(trace(longer, PAIRS)))
    assert found is not None


def test_what_changes_nothing_is_no_structure():
    def idle(net):
        net.bn1.momentum = 0.5
        net.relu.inplace = False

    assert difference(computation(traced()), computation(traced(idle))) is None
    dropouts = (nn.Sequential(nn.Dropout(p), nn.Linear(2, 2)).eval() for p in (0.1, 0.5))
    assert difference(*(computation(trace(module, PAIRS)) for module in dropouts)) is None


def test_a_setting_of_another_version_is_passed_over():
    saved, here = computation(traced()), computation(traced())
    saved[1][1]["new_in_torch_9"] = 3
    assert difference(saved, here) is None and difference(here, saved) is None


def test_buffers_outside_the_state_dict_are_part_of_the_hash():
    def shifted(by):
        module = nn.Sequential(nn.Linear(2, 2))
        nn.init.zeros_(module[0].weight), nn.init.zeros_(module[0].bias)
        module[0].register_buffer("shift", torch.tensor(by), persistent=False)
        return trace(module, PAIRS)

    assert weights_hash(shifted(1.0)) == weights_hash(shifted(1.0)) != weights_hash(shifted(2.0))
