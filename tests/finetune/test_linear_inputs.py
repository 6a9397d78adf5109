"""Ranges by what linear layers make of a value."""

import pytest
import torch
from torch import nn

from synq_fast.engine.student import build_student
from synq_fast.finetune.linear_inputs import ROWS, best_range, fit_linear_inputs
from synq_fast.graph.trace import trace
from synq_fast.quant import ActivationQuantizer, BitWidths, observing
from synq_fast.quant.activations import SHARES
from synq_fast.quant.minifloat_quantizer import MinifloatQuantizer
from synq_fast.quant.settings import Quantization
from synq_fast.reference import fake_quantize
from tests.transformers import tiny_vit


def values(seed=0):
    """A column of outliers that nothing reads, beside columns that count."""
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(60, 5, generator=g), torch.randn(3, 5, generator=g)
    x[:, 0] *= 20
    w[:, 0] *= 0.01
    return x, w


def error(x, w, low, high, bits):
    """Of the product, squared."""
    difference = fake_quantize(x, low, high, bits) - x
    return float((difference.double() @ w.double().T).square().sum())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_best_range_has_the_least_error_of_the_product(bits):
    x, w = values()

    low, high = best_range(x, lambda e: e @ w.T, ActivationQuantizer(bits))
    ends = torch.linspace(1, 1 / SHARES, SHARES).unbind()
    candidates = [(x.min() * a, x.max() * b) for s in ends for a, b in ((s, s), (1, s), (s, 1))]
    least = min(error(x, w, *pair, bits) for pair in candidates)
    assert error(x, w, low, high, bits) <= least * (1 + 1e-4)
    # The range that fits the values keeps the outliers, which cost nothing here.
    assert bits == 8 or high - low < 0.5 * (x.max() - x.min())


def test_small_floats_of_a_long_tail_err_less_than_a_uniform_grid():
    g = torch.Generator().manual_seed(2)
    x = nn.functional.gelu(torch.randn(400, 24, generator=g).exp() - 1)
    w = torch.randn(8, 24, generator=g)
    errors = {}
    for kind in (ActivationQuantizer, MinifloatQuantizer):
        quantizer = kind(4)
        quantizer.take(*best_range(x, lambda e: e @ w.T, quantizer))
        candidates = zip(*quantizer.candidates(*x.aminmax()), strict=True)
        tried = [float(((quantizer.on_range(x, *c) - x) @ w.T).square().sum()) for c in candidates]
        errors[kind] = float(((quantizer(x) - x) @ w.T).square().sum())
        assert errors[kind] <= min(tried) * (1 + 1e-4)
    assert errors[MinifloatQuantizer] < 0.5 * errors[ActivationQuantizer]


def test_values_of_one_sign():
    x, w = values()
    for moved in (x.abs() + 3, -x.abs() - 3):
        low, high = best_range(moved, lambda e: e @ w.T, ActivationQuantizer(3))
        assert low < high
        assert error(moved, w, low, high, 3) <= error(moved, w, *moved.aminmax(), 3)


def student(**recipe):
    teacher = tiny_vit()
    graph = trace(teacher.module, teacher.example())
    made = build_student(graph, BitWidths(4, 3), Quantization(placement="vit", **recipe), ())
    images = torch.randn(6, *teacher.input_shape)
    with torch.no_grad(), observing(made):
        made(images)
    return made, images


def test_what_linear_layers_alone_read_is_fitted():
    made, images = student(range="output", head_ranges=True)
    before = {n: t.clone() for n, t in made.state_dict().items()}
    # qkv, proj, fc1 and fc2 of two layers, and the classifier.
    assert fit_linear_inputs(made, images) == 9
    after = made.state_dict()
    changed = {n.rpartition(".")[0] for n, t in after.items() if not torch.equal(t, before[n])}
    readers = [
        user.target
        for node in made.graph.nodes
        if str(node.target) in changed
        for user in node.users
        if user.op == "call_module"
    ]
    assert len(changed) == 9
    assert all(isinstance(made.get_submodule(str(name)), nn.Linear) for name in readers)
    for module in made.modules():
        if isinstance(module, ActivationQuantizer):
            assert not module._forward_hooks and not module.bypass


def test_fitted_ranges_shrink_too():
    made, images = student(range="output")
    fit_linear_inputs(made, images)
    quantizers = [m for m in made.modules() if isinstance(m, ActivationQuantizer)]
    before = [(q.range_min.clone(), q.range_max.clone()) for q in quantizers]
    for quantizer in quantizers:
        quantizer.shrink = 0.5
    assert fit_linear_inputs(made, images) == 9
    halved = [
        torch.equal(q.range_min, low / 2) and torch.equal(q.range_max, high / 2)
        for q, (low, high) in zip(quantizers, before, strict=True)
    ]
    assert sum(halved) == 9


def test_several_readers_count_together_and_many_rows_are_sampled():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.one, self.other = nn.Linear(4, 6), nn.Linear(4, 2)

        def forward(self, x):
            x = self.stem(x).flatten(2).transpose(1, 2)
            return torch.cat([self.one(x), self.other(x)], -1).mean(1)

    torch.manual_seed(0)
    net = Two().eval()
    images = torch.randn(5, 3, 16, 16)
    graph = trace(net, images[:2])
    recipe = Quantization(placement="all_inputs", range="output")
    made = build_student(graph, BitWidths(4, 3), recipe, ())
    with torch.no_grad(), observing(made):
        made(images)
    assert fit_linear_inputs(made, images) == 1
    x = net.stem(images).flatten(2).transpose(1, 2).flatten(0, 1).detach()
    x = x[:: max(1, len(x) // ROWS) | 1]
    both = torch.cat([net.one.weight, net.other.weight]).detach()
    expected = best_range(x, lambda e: e @ both.T, ActivationQuantizer(3))
    (quantizer,) = (
        m
        for n, m in made.named_modules()
        if isinstance(m, ActivationQuantizer) and n != "quantize_x"
    )
    found = torch.stack([quantizer.range_min, quantizer.range_max])
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=0)


def test_a_range_that_must_hold_zero_does():
    quantizer = ActivationQuantizer(4)
    quantizer.holds_zero = True
    quantizer.take(torch.tensor(2.0), torch.tensor(3.0))
    assert (quantizer.range_min, quantizer.range_max) == (0, 3)
