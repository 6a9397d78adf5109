"""Functions of transformers joined with learned quantizers."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

from synq_fast import ops
from synq_fast.engine.student import build_student
from synq_fast.graph.trace import trace
from synq_fast.quant import ActivationQuantizer, BitWidths, fused, held_weights, observing
from synq_fast.quant.activations import bypassing
from synq_fast.quant.attention_fusion import QuantizedAttention
from synq_fast.quant.fusion import joined
from synq_fast.quant.learned_fusion import (
    QuantizedElementwise,
    QuantizedLayerNorm,
    QuantizedSoftmax,
)
from synq_fast.quant.minifloat_quantizer import MinifloatQuantizer
from synq_fast.quant.settings import Quantization
from tests.transformers import HEADS, WIDTH, Layer, tiny_vit

LEARNED = Quantization(range="mse", weight_range="learned", learn_ranges=True)


def calibrated(module=None):
    teacher = tiny_vit()
    graph = trace(module or teacher.module, teacher.example())
    student = build_student(graph, BitWidths(4, 4), LEARNED, ())
    x = torch.randn(3, *teacher.input_shape)
    with torch.no_grad(), observing(student):
        student(x)
    return student, x


def gradients(form, student, x):
    parameters = dict(student.named_parameters())
    y = form(x)
    values = torch.autograd.grad(y.square().sum(), list(parameters.values()), allow_unused=True)
    return y.detach(), dict(zip(parameters, values, strict=True))


def activations(form):
    return [m for m in form.modules() if isinstance(m, QuantizedElementwise)]


def softmaxes(form):
    return [m for m in form.modules() if isinstance(m, QuantizedSoftmax)]


def attentions(form):
    return [m for m in form.modules() if isinstance(m, QuantizedAttention)]


def norms(form):
    return [m for m in form.modules() if isinstance(m, QuantizedLayerNorm)]


@pytest.mark.parametrize("build", [fused, joined])
def test_the_form_computes_the_same_with_the_same_gradients(build):
    student, x = calibrated()
    form = build(student)
    # The last norm is read at the class token alone, where its quantizer is.
    assert (len(activations(form)), len(norms(form))) == (2, 4)
    assert [m.factor for m in attentions(form)] == [(WIDTH // HEADS) ** -0.5] * 2
    assert softmaxes(form) == []
    y, mine = gradients(form, student, x)
    expected, theirs = gradients(student, student, x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    for name, value in theirs.items():
        if value is not None:
            # Products of codes lie on ties of the next grid: rounding turns a few of its codes.
            assert (mine[name] - value).norm() <= 5e-3 * value.norm() + 1e-6, name


def test_quantizers_that_are_off_or_drop_are_left_to_do_it():
    student, x = calibrated()
    form = fused(student)
    with torch.no_grad(), bypassing(student), held_weights(student):
        assert torch.equal(form(x), student(x))
    seed = torch.tensor(3)
    quantizers = [module.quantizer for module in (*activations(form), *norms(form))]
    for module in attentions(form):
        quantizers += [module.queries, module.keys, module.values, module.probabilities]
    assert len(quantizers) == 14
    for quantizer in quantizers:
        quantizer.keep, quantizer.seed = 0.5, seed
    assert torch.equal(form(x), student(x))
    before = activations(form)[0].quantizer.range_max.clone()
    with torch.no_grad(), observing(student):
        form(5 * x)
    assert not torch.equal(before, activations(form)[0].quantizer.range_max)


def test_a_value_that_is_read_elsewhere_stays():
    student, _ = calibrated()
    kept = next(n.name for n in student.graph.nodes if n.name.startswith("gelu"))
    form = fused(student, keep=[kept])
    assert len(activations(form)) == 1 and kept in {node.name for node in form.graph.nodes}


class Approximate(Layer):
    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


def test_other_functions_stay():
    module = tiny_vit().module
    module.layers = nn.Sequential(Approximate(), Layer())
    student, _ = calibrated(module)
    assert len(activations(fused(student))) == 1


class AsFunction(Layer):
    """The norm as a call of a function, whose value's size is asked for, as in timm."""

    def forward(self, x):
        norm = self.norm1
        y = functional.layer_norm(x, (WIDTH,), norm.weight, norm.bias, 1e-3)
        x = x + self.attention(y).view(y.shape[0], *y.shape[1:])
        return x + self.fc2(functional.gelu(self.fc1(functional.layer_norm(x, (WIDTH,)))))


class Curved(nn.Module):
    """Layers with activation functions between them; ``before`` of what the second one takes."""

    def __init__(self, first, second, before=None):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)]
        )
        self.first, self.second, self.before = first, second, before

    def forward(self, x):
        convolution, norm, inner, last = self.layers
        x = self.first(norm(convolution(x)))
        x = inner(x)
        y = last(self.second(x))
        if self.before is not None:
            y = y.flatten(1).sum(1, keepdim=True) + self.before(x).flatten(1)
        return y.flatten(1)


CURVES = {
    "SiLU": (nn.SiLU(), functional.silu),
    "SiLU in place": (
        nn.SiLU(inplace=True),
        lambda x: functional.silu(x, inplace=True),
    ),
    "hard-swish": (nn.Hardswish(), functional.hardswish),
    "hard-swish in place": (
        nn.Hardswish(inplace=True),
        lambda x: functional.hardswish(x, inplace=True),
    ),
    "GELU": (nn.GELU(), functional.gelu),
}


def curved_student(module, quantization):
    module = module.eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    images = 2 * torch.randn(6, 3, 9, 9)
    student = build_student(trace(module, images), BitWidths(4, 4), quantization, ())
    with torch.no_grad(), observing(student):
        student(images)
    return student.eval(), images


@pytest.mark.parametrize("build", [fused, joined])
@pytest.mark.parametrize("after_gelu", ["uniform", "minifloat"])
@pytest.mark.parametrize("curves", CURVES.values(), ids=CURVES)
def test_activation_functions_are_joined(curves, after_gelu, build):
    quantization = dataclasses.replace(LEARNED, after_gelu=after_gelu)
    student, x = curved_student(Curved(*curves), quantization)
    form = build(student)
    found = activations(form)
    assert len(found) == 2
    kinds = {type(module.quantizer) for module in found}
    assert kinds == {MinifloatQuantizer if after_gelu == "minifloat" else ActivationQuantizer}
    y, mine = gradients(form, student, x)
    expected, theirs = gradients(student, student, x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    gains = [name for name in theirs if name.endswith("gain")]
    assert len(gains) >= (1 if after_gelu == "minifloat" else 3)
    # Joined, a frozen norm is constant, and so is the bias that is part of it.
    constant = {name for name, value in mine.items() if value is None and build is joined}
    assert constant <= {"layers.0.bias", "layers.1.weight", "layers.1.bias"}
    for name, value in theirs.items():
        if value is not None and name not in constant:
            assert (mine[name] - value).norm() <= 1e-3 * value.norm() + 1e-6, name
    with torch.no_grad(), bypassing(student), held_weights(student):
        torch.testing.assert_close(form(x), student(x))


@pytest.mark.parametrize("in_place", [False, True])
def test_what_an_activation_function_takes_may_be_read_elsewhere(in_place):
    """In place, the other reader sees the function's value, which is quantized."""
    module = Curved(nn.SiLU(), nn.Hardswish(in_place), before=torch.sigmoid)
    student, x = curved_student(module, LEARNED)
    form = fused(student)
    assert len(activations(form)) == 2
    with torch.no_grad():
        torch.testing.assert_close(form(x), student(x), rtol=1e-4, atol=1e-4)


def test_small_floats_that_are_off_or_drop_are_left_to_do_it():
    quantization = dataclasses.replace(LEARNED, after_gelu="minifloat")
    student, x = curved_student(Curved(nn.SiLU(), nn.GELU()), quantization)
    form = fused(student)
    quantizers = [module.quantizer for module in activations(form)]
    for quantizer in quantizers:
        quantizer.keep, quantizer.seed = 0.5, torch.tensor(3)
    assert torch.equal(form(x), student(x))
    before = quantizers[0].range_max.clone()
    with torch.no_grad(), observing(student):
        form(5 * x)
    assert not torch.equal(before, quantizers[0].range_max)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_small_floats_are_given_by_scale_and_zero_point(bits):
    """The grid that ops take has the levels of the range, bit for bit."""
    quantizer = MinifloatQuantizer(bits)
    quantizer.take(torch.tensor(-0.27), torch.tensor(5.3))
    grid, _ = quantizer.learned((4, 9))
    # Far from zero hard-swish changes nothing.
    x = torch.linspace(3, 7, 3001)
    y = ops.hardswish_fake_quantize(x, grid.scale, grid.zero_point, bits, grid="minifloat")
    values = x * (x + 3).clamp(0, 6) * (1 / 6)
    assert torch.equal(y, quantizer(values))


def test_norms_as_functions_are_joined_too():
    module = tiny_vit().module
    module.layers = nn.Sequential(AsFunction(), Layer())
    student, x = calibrated(module)
    form = fused(student)
    assert [norm.eps for norm in norms(form)] == [1e-3, 1e-5, 1e-5, 1e-5]
    with torch.no_grad():
        torch.testing.assert_close(form(x), student(x), rtol=1e-4, atol=1e-5)


def test_probabilities_begin_at_zero_whatever_is_observed():
    student, _ = calibrated()
    ranges = [m.probabilities for m in attentions(fused(student))]
    assert len(ranges) == 2
    assert all(q.from_zero and q.range_min == 0 and q.range_max > 0 for q in ranges)
