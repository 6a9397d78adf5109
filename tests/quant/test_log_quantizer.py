"""Probabilities on powers of two."""

import pytest
import torch

from synq_fast import ops
from synq_fast.deployment.freezing import freeze
from synq_fast.engine.student import build_student
from synq_fast.errors import ModelError
from synq_fast.finetune.probabilities import best_end, fit_probabilities
from synq_fast.graph.attention import find_attentions
from synq_fast.graph.trace import trace
from synq_fast.quant import ActivationQuantizer, BitWidths, fused, observing
from synq_fast.quant.activations import bypassing
from synq_fast.quant.attention_fusion import QuantizedAttention
from synq_fast.quant.learned_fusion import QuantizedSoftmax
from synq_fast.quant.log_quantizer import LogQuantizer
from synq_fast.quant.settings import Quantization
from tests.transformers import tiny_vit


def student_of(bits=4, **options):
    """A calibrated student of two attentions, and images."""
    teacher = tiny_vit()
    graph = trace(teacher.module, teacher.example())
    recipe = Quantization(range="minmax", **options)
    student = build_student(graph, BitWidths(4, bits), recipe, ())
    images = torch.randn(6, *teacher.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), observing(student):
        student(images)
    return student, images, find_attentions(graph)


def of_kind(student, kind):
    return [name for name, module in student.named_modules() if type(module) is kind]


@pytest.mark.parametrize(
    ("options", "placed"),
    [
        ({"bits": 4, "probabilities": "log2"}, 2),
        ({"bits": 8, "probabilities": "log2"}, 2),
        ({"bits": 5, "probabilities": "auto"}, 2),
        ({"bits": 6, "probabilities": "auto"}, 0),
        ({"bits": 4, "probabilities": "auto", "placement": "integer"}, 0),
        ({"bits": 4}, 0),
    ],
)
def test_only_probabilities_get_them(options, placed):
    student, *_ = student_of(**options)
    found = of_kind(student, LogQuantizer)
    assert len(found) == placed
    assert all("softmax" in name for name in found)
    plain, *_ = student_of(**options | {"probabilities": "uniform"})
    everywhere = of_kind(plain, ActivationQuantizer)
    assert sorted([*of_kind(student, ActivationQuantizer), *found]) == sorted(everywhere)


@pytest.mark.parametrize("heads", [None, 3])
def test_values(heads):
    quantizer = LogQuantizer(3, heads=heads)
    p = torch.randn(4, 3, 5, 7).mul(2).softmax(-1)
    quantizer.start_observing()
    quantizer(p)
    quantizer.stop_observing()
    largest = p.amax((0, 2, 3)) if heads else p.amax()
    assert torch.equal(quantizer.range_max, largest) and not quantizer.range_min.any()
    y = quantizer(p)
    assert torch.equal(y, ops.fake_quantize_log(p, largest, 3, axis=1 if heads else None))
    assert set(y.unique().tolist()) <= set(quantizer.levels().float().tolist())
    assert len(quantizer.levels()) == (8 if heads is None else 22)
    low, high = (end.view(-1) for end in quantizer.ends())
    assert not low.any()
    torch.testing.assert_close(high, largest.view(-1) * 2**0.5)


def test_no_parameter_and_no_uniform_grid():
    quantizer = LogQuantizer(4)
    assert list(quantizer.parameters()) == []
    with pytest.raises(ModelError, match=r"powers of two.*probabilities = uniform"):
        quantizer.grid()


def test_dropped_elements_pass():
    quantizer = LogQuantizer(2)
    p = torch.rand(8, 2, 9, 9).add_(0.01)
    quantizer.take(torch.zeros(()), p.amax())
    whole = quantizer(p)
    quantizer.keep, quantizer.seed, quantizer.part = 0.5, torch.tensor(5), (0, 8)
    mixed = quantizer(p)
    passed = mixed == p
    assert 0.4 < passed.float().mean() < 0.6
    assert torch.equal(mixed, torch.where(passed, p, whole))
    quantizer.part = (4, 4)
    assert torch.equal(quantizer(p[4:]), mixed[4:])


@pytest.mark.parametrize("head_ranges", [False, True])
def test_the_best_end_has_the_least_error_of_the_product(head_ranges):
    student, images, attentions = student_of(
        3, probabilities="log2", placement="vit", head_ranges=head_ranges
    )
    assert fit_probabilities(student, attentions, images) == 2
    g = torch.Generator().manual_seed(0)
    p = torch.softmax(4 * torch.randn(2, 3, 9, 9, generator=g), -1)
    v = torch.randn(2, 3, 9, 4, generator=g)
    quantizer = LogQuantizer(3, heads=3 if head_ranges else None)
    found = best_end(p, v, quantizer)
    parts = [(p[:, i], v[:, i], found[i]) for i in range(3)] if head_ranges else [(p, v, found)]
    for one, values, end in parts:

        def error(end, one=one, values=values):
            return float(((ops.fake_quantize_log(one, end, 3) - one) @ values).square().sum())

        others = [error(one.amax() * 2 ** (-n / 2)) for n in range(16)]
        assert error(end) <= min(others) * (1 + 1e-5)


@pytest.fixture
def grids(monkeypatch):
    """The grids of probabilities that fused attentions were called with."""
    found = []
    op = ops.quantized_attention

    def recorded(*arguments, **options):
        found.append(options["p_grid"])
        return op(*arguments, **options)

    monkeypatch.setattr(ops, "quantized_attention", recorded)
    return found


LEARNED = {"weight_range": "learned", "learn_ranges": True}


@pytest.mark.parametrize("head_ranges", [False, True])
@pytest.mark.parametrize("learned", [{}, LEARNED], ids=["frozen", "learned"])
def test_fused_networks_compute_the_same(grids, head_ranges, learned):
    student, images, attentions = student_of(
        placement="vit", probabilities="log2", head_ranges=head_ranges, **learned
    )
    fit_probabilities(student, attentions, images)
    student.eval()
    form = fused(student)
    with torch.no_grad():
        torch.testing.assert_close(form(images), student(images), rtol=1e-5, atol=1e-5)
    assert grids == ["log2"] * 2
    if learned:
        parameters = dict(student.named_parameters())
        mine, theirs = (
            torch.autograd.grad(
                network(images).square().sum(), list(parameters.values()), allow_unused=True
            )
            for network in (form, student)
        )
        assert grids == ["log2"] * 4
        for name, one, other in zip(parameters, mine, theirs, strict=True):
            if other is not None:
                assert (one - other).norm() <= 5e-3 * other.norm() + 1e-6, name


def test_what_is_left_out_or_observed_is_not_fused(grids):
    student, images, attentions = student_of(placement="vit", probabilities="log2")
    fit_probabilities(student, attentions, images)
    form = fused(student.eval())
    quantizers = [m.probabilities for m in form.modules() if isinstance(m, QuantizedAttention)]
    assert len(quantizers) == 2
    with torch.no_grad():
        for quantizer in quantizers:
            quantizer.keep, quantizer.seed = 0.5, torch.tensor(3)
        assert torch.equal(form(images), student(images))
        for quantizer in quantizers:
            quantizer.keep = 1.0
        with bypassing(student):
            assert torch.equal(form(images), student(images))
        before = quantizers[0].range_max.clone()
        with observing(student):
            form(3 * images)
    assert not torch.equal(before, quantizers[0].range_max)
    assert grids == []


def test_the_softmax_alone_is_joined_where_values_are_read():
    student, images, attentions = student_of(placement="vit", probabilities="log2", **LEARNED)
    fit_probabilities(student, attentions, images)
    form = fused(student.eval(), keep=["quantize_getitem_2"])
    softmaxes = [m for m in form.modules() if isinstance(m, QuantizedSoftmax)]
    assert len(softmaxes) == 1 and type(softmaxes[0].quantizer) is LogQuantizer
    with torch.no_grad():
        torch.testing.assert_close(form(images), student(images), rtol=1e-5, atol=1e-5)


def test_what_has_no_form_in_integers_is_refused():
    student, *_ = student_of(placement="vit", probabilities="log2")
    with pytest.raises(ModelError, match=r"quantization\.probabilities = uniform"):
        freeze(student.eval())
