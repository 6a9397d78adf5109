import pytest
import torch
from torch import nn
from torch.nn import functional

from synq_fast.graph import trace
from synq_fast.quant import ActivationQuantizer, BitPolicy, BitWidths, coverage_of, observing
from synq_fast.quant.placement import quantized_copy
from tests.transformers import tiny_vit


class Branches(nn.Module):
    """A residual sum, a concatenation, a pool of each kind, and an activation that is no ReLU."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.body, self.end = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = functional.relu6(self.norm(self.stem(x)))
        y = functional.relu(x + self.body(x))
        z = functional.silu(self.end(functional.max_pool2d(y, 3, 1, 1)))
        joined = torch.cat([y, z], 1)
        return self.head(functional.adaptive_avg_pool2d(joined, 1).flatten(1))


def placed(module, shape, bits="w4a4"):
    graph = trace(module.eval(), torch.zeros(2, *shape))
    return quantized_copy(
        graph,
        BitPolicy(BitWidths.parse(bits), 0, {}),
        placement="integer",
        make_quantizer=lambda width, heads: ActivationQuantizer(width, policy="minmax"),
    )


def widths(student):
    return {
        node.name.removeprefix("quantize_"): student.get_submodule(node.target).bits
        for node in student.graph.nodes
        if node.name.startswith("quantize_")
    }


def test_every_piece_is_quantized_at_its_end():
    student = placed(Branches(), (3, 8, 8))
    assert widths(student) == {
        "x": 8,
        "relu6": 4,  # read by the body, and by the sum
        "body": 8,  # feeds a sum
        "relu": 4,
        "end": 8,  # feeds SiLU
        "silu": 8,
        "cat": 8,
        "adaptive_avg_pool2d": 4,  # what the last layer reads
    }
    assert coverage_of(student).float_inputs == ()


class InactiveDropout(nn.Module):
    def forward(self, x):
        return functional.dropout(x, 0.5, self.training)


class Idle(nn.Module):
    """Modules that do nothing between a layer, its normalisation and its ReLU, as timm has them."""

    def __init__(self, idle):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.first, self.drop, self.again, self.act = idle(), idle(), nn.Dropout(), nn.ReLU6()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.act(self.again(self.drop(self.norm(self.first(self.stem(x))))))
        return self.head(self.again(x.mean((2, 3))))


@pytest.mark.parametrize("idle", [nn.Identity, nn.Dropout2d, InactiveDropout])
def test_what_does_nothing_parts_no_piece(idle):
    """The range of a ReLU6 is far smaller than that of what it reads."""
    student = placed(Idle(idle), (3, 8, 8))
    assert widths(student) == {"x": 8, "act": 8, "mean": 4}
    network, images = Idle(idle).eval(), torch.rand(2, 3, 8, 8)
    traced = trace(network, images)
    assert torch.equal(traced(images), network(images))
    # The last dropout is before the head, where nothing is joined.
    assert [str(n.target).split(".")[0] for n in traced.graph.nodes if n.op == "call_module"] == [
        "stem", "norm", "act", "again", "head"
    ]  # fmt: skip


def test_a_dropout_that_is_active_stays():
    network = Idle(nn.Dropout2d).train()
    called = {n.target for n in trace(network, torch.rand(2, 3, 8, 8)).graph.nodes}
    assert called >= {"first", "drop", "again"}


def test_ranges_hold_zero():
    student = placed(Branches(), (3, 8, 8))
    with torch.no_grad(), observing(student):
        student(torch.rand(4, 3, 8, 8) + 1)
    for module in student.modules():
        if isinstance(module, ActivationQuantizer):
            assert module.range_min <= 0 <= module.range_max


@pytest.mark.parametrize("bits", ["w4a4", "w8a8"])
def test_a_transformer_keeps_its_residual_stream(bits):
    teacher = tiny_vit()
    student = placed(teacher.module, teacher.input_shape, bits)
    names = set(widths(student))
    assert "patches" in names  # the output of a convolution
    assert not any(name.startswith("add") for name in names)
    assert coverage_of(student).float_inputs == ()
