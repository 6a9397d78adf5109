import copy
import operator
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from synq_fast.errors import TraceError
from synq_fast.quant import Tapped, quantized_copy, trace
from synq_fast.quant.activations import ActivationQuantizer
from synq_fast.quant.bits import BitPolicy, BitWidths
from synq_fast.recipes import load_recipe
from tests.conftest import ROOT
from tests.tiny import randomize_statistics, tiny_images, tiny_net


class DependsOnValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 2, 1)
        self.body = nn.Sequential(nn.ReLU(), DependsOnValues())
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        return self.fc(self.body(self.first(x)).mean((2, 3)))


def test_untraceable_part_is_named_with_the_way_out():
    with pytest.raises(TraceError) as caught:
        trace(Untraceable(), tiny_images(2))
    message = str(caught.value)
    assert "body.1 (DependsOnValues)" in message
    assert "quantization.leaf_modules" in message
    # What the message names is a key that a recipe takes.
    load_recipe("synq-digits", {"quantization.leaf_modules": ["body.1"]})


def test_own_forward_is_named_where_no_submodule_failed():
    with pytest.raises(TraceError, match=r"the model's own forward \(DependsOnValues\)"):
        trace(DependsOnValues(), tiny_images(2))


@pytest.mark.parametrize("leaf", ["body.1", "DependsOnValues"])
def test_leaf_makes_it_work_and_stays_in_floating_point(leaf):
    module = Untraceable().eval()
    graph = trace(module, tiny_images(2), [leaf])
    images = tiny_images(3)
    assert torch.equal(graph(images), module(images))
    student = quantized_copy(
        graph,
        BitPolicy(BitWidths(2, 4)),
        placement="after_relu",
        make_quantizer=ActivationQuantizer,
    )
    assert type(student.get_submodule("body.1").conv) is nn.Conv2d
    assert type(student.get_submodule("first")) is not nn.Conv2d


class InPlace(nn.Module):
    def __init__(self, form: str):
        super().__init__()
        self.form = form
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.relu6 = nn.ReLU6(inplace=True)

    def forward(self, x):
        x = self.conv(x)
        out = self.body(x)
        if self.form == "operator":
            out += x
        elif self.form == "method":
            out = out.add_(x)
        elif self.form == "product":
            out *= x
        elif self.form == "module":
            out = self.relu(out)
        elif self.form == "module6":
            out = self.relu6(out)
        elif self.form == "function":
            out = functional.relu(out, inplace=True)
        elif self.form == "function6":
            out = functional.relu6(out, True)
        elif self.form == "torch.relu_":
            out = torch.relu_(out)
        elif self.form == "functional.relu_":
            out = functional.relu_(out)
        else:
            out = out.relu_()
        return out.mean((2, 3))


@pytest.mark.parametrize(
    "form",
    ["operator", "method", "product", "module", "module6", "function", "function6", "torch.relu_",
     "functional.relu_", "tensor.relu_"],
)  # fmt: skip
def test_tapped_body_keeps_its_value(form):
    module = InPlace(form).eval()
    images = tiny_images(2)
    with torch.no_grad():
        expected = module.body(module.conv(images))
        logits = module(images)
        view = Tapped(trace(module, images), ["body"])(images)
    assert torch.equal(view.logits, logits)
    assert not torch.equal(expected, expected.relu())
    assert torch.equal(view.features[0], expected)


def test_addition_in_place_becomes_one_out_of_place():
    targets = [node.target for node in trace(tiny_net(), tiny_images(2)).graph.nodes]
    assert operator.add in targets and operator.iadd not in targets


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_model_keeps_its_outputs(name):
    module = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    randomize_statistics(module)
    images = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        expected = copy.deepcopy(module)(images)
        assert torch.equal(trace(module, images)(images), expected)


def test_a_process_that_has_traced_may_fork_and_differentiate():
    program = """
import os, torch
from synq_fast.graph import trace
from tests.tiny import tiny_images, tiny_net
trace(tiny_net(), tiny_images(2))
child = os.fork()
if child == 0:
    try:
        torch.ones(3, requires_grad=True).sum().backward()
        os._exit(0)
    finally:
        os._exit(1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


class PartlyZeroBias(nn.Module):
    """Swin v2's: a copy of a bias, a part of which is overwritten, is what the layer adds."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(12, 6)

    def forward(self, x):
        bias = self.qkv.bias.clone()
        bias[2:4].zero_()
        return functional.linear(x.flatten(1), self.qkv.weight, bias)


def test_constants_that_are_written_to_keep_what_was_written():
    torch.manual_seed(0)
    net, x = PartlyZeroBias().eval(), torch.randn(2, 3, 2, 2)
    before = net.qkv.bias.clone()
    graph = trace(net, x)
    assert torch.allclose(graph(x), net(x), atol=1e-6)
    assert torch.equal(net.qkv.bias, before)
    assert graph.get_submodule("qkv").bias[2:4].tolist() == [0, 0]
