"""Attention joined with the quantizers of what it multiplies."""

import pytest
import torch
from torch import nn

from synq_fast import ops
from synq_fast.engine.student import build_student
from synq_fast.graph.trace import trace
from synq_fast.quant import BitWidths, fused, observing
from synq_fast.quant.attention_fusion import QuantizedAttention
from synq_fast.quant.learned_fusion import QuantizedSoftmax
from synq_fast.quant.settings import Quantization
from tests.transformers import HEADS, WIDTH, tiny_vit

LEARNED = Quantization(range="minmax", weight_range="learned", learn_ranges=True)
FROZEN = Quantization(range="minmax")
TOKENS = 10


def calibrated(module=None, settings=LEARNED):
    teacher = tiny_vit()
    graph = trace(module or teacher.module, teacher.example())
    student = build_student(graph, BitWidths(4, 8), settings, ()).eval()
    x = torch.randn(4, *teacher.input_shape)
    with torch.no_grad(), observing(student):
        student(x)
    return student, x


def attentions(form):
    return [m for m in form.modules() if isinstance(m, QuantizedAttention)]


def assert_same(form, student, x):
    parameters = dict(student.named_parameters())
    found = []
    for network in (form, student):
        y = network(x)
        slopes = torch.autograd.grad(y.square().sum(), list(parameters.values()), allow_unused=True)
        found.append((y.detach(), dict(zip(parameters, slopes, strict=True))))
    (y, mine), (expected, theirs) = found
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    for name, value in theirs.items():
        if value is not None:
            # Products of codes lie on ties of the next grid: rounding turns a few of its codes.
            assert (mine[name] - value).norm() <= 5e-3 * value.norm() + 1e-6, name
    return theirs


@pytest.fixture
def calls(monkeypatch):
    """The calls of the op."""
    found = []
    op = ops.quantized_attention

    def recorded(*arguments, **options):
        found.append(options)
        return op(*arguments, **options)

    monkeypatch.setattr(ops, "quantized_attention", recorded)
    return found


class Biased(nn.Module):
    """Attention within windows, with a bias of relative positions, and masks where there are."""

    def __init__(self, windows, masked):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.windows, self.tokens, self.masked = windows, TOKENS // windows, masked
        self.bias = nn.Parameter(torch.randn(HEADS, self.tokens, self.tokens))
        kept = torch.rand(1, windows, 1, self.tokens, self.tokens) < 0.8
        self.register_buffer("mask", torch.where(kept, 0.0, -100.0))

    def forward(self, x):
        shape = -1, self.tokens, 3, HEADS, WIDTH // HEADS
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1) * 0.7 + self.bias.unsqueeze(0)
        if self.masked:
            size = self.tokens, self.tokens
            logits = logits.view(-1, self.windows, HEADS, *size) + self.mask
            logits = logits.view(-1, HEADS, *size)
        y = torch.softmax(logits, dim=-1) @ v
        return self.proj(y.transpose(1, 2).reshape(-1, TOKENS, WIDTH))


@pytest.mark.parametrize(("windows", "masked"), [(1, False), (2, False), (2, True)])
def test_a_bias_and_masks_of_windows_are_taken_over(windows, masked, calls):
    module = tiny_vit().module
    module.layers[0].attention = Biased(windows, masked)
    student, x = calibrated(module)
    form = fused(student)
    assert [m.factor for m in attentions(form)] == [0.7, (WIDTH // HEADS) ** -0.5]
    slopes = assert_same(form, student, x)
    assert slopes["layers.0.attention.bias"].abs().max() > 0
    assert len(calls) == 2
    assert calls[0]["bias"] is not None and (calls[0]["mask"] is not None) == masked


@pytest.mark.parametrize("tapped", ["softmax", "matmul", "mul", "quantize_getitem_2"])
def test_an_attention_whose_inside_is_read_stays(tapped):
    student, x = calibrated()
    form = fused(student, keep=[tapped])
    assert len(attentions(form)) == 1
    assert tapped in {node.name for node in form.graph.nodes}
    # The softmax alone is joined with its quantizer, unless it is what is read.
    assert len([m for m in form.modules() if isinstance(m, QuantizedSoftmax)]) == (
        tapped != "softmax"
    )
    with torch.no_grad():
        torch.testing.assert_close(form(x), student(x), rtol=1e-4, atol=1e-5)


def test_outputs_keep_their_names():
    student, _ = calibrated()
    names = {node.name for node in fused(student).graph.nodes}
    assert {"matmul_1", "matmul_3"} <= names
    assert not names & {"matmul", "softmax", "quantize_softmax", "matmul_2", "quantize_getitem_2"}


def test_frozen_ranges_are_joined_in_evaluation_alone(calls):
    """The gradient of a frozen range is passed outside it, which the op does not do."""
    student, x = calibrated(settings=FROZEN)
    form = fused(student)
    assert len(attentions(form)) == 2
    with torch.no_grad():
        torch.testing.assert_close(form(x), student(x), rtol=1e-4, atol=1e-5)
    assert len(calls) == 2
    assert_same(form, student, x)
    assert len(calls) == 2


def test_clipped_gradients_of_frozen_ranges_are_the_ops(calls):
    student, x = calibrated(settings=FROZEN)
    form = fused(student)
    for module in attentions(form):
        for one in (module.queries, module.keys, module.values, module.probabilities):
            one.ste, one.range_max = "clip", one.range_max * 0.7
    assert_same(form, student, x)
    assert len(calls) == 2


class Inside(nn.Module):
    """Probabilities that more than one product reads."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(-1, TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        p = torch.softmax(q @ k.transpose(-2, -1), dim=-1)
        y = p @ v + p @ v.neg()
        return y.transpose(1, 2).reshape(-1, TOKENS, WIDTH)


def test_probabilities_that_are_read_twice_stay():
    module = tiny_vit().module
    module.layers[0].attention = Inside()
    student, x = calibrated(module)
    form = fused(student)
    assert len(attentions(form)) == 1
    with torch.no_grad():
        torch.testing.assert_close(form(x), student(x), rtol=1e-4, atol=1e-5)
