"""Ranges of attention's probabilities."""

import torch

from synq_fast.engine.student import build_student
from synq_fast.finetune.probabilities import SHARES, best_end, fit_probabilities
from synq_fast.graph import called_module
from synq_fast.graph.attention import find_attentions
from synq_fast.graph.trace import trace
from synq_fast.quant import ActivationQuantizer, BitWidths, observing
from synq_fast.quant.settings import Quantization
from synq_fast.reference import fake_quantize
from tests.transformers import tiny_vit


def test_the_best_end_has_the_least_error_of_the_product():
    g = torch.Generator().manual_seed(0)
    p = torch.softmax(3 * torch.randn(2, 3, 5, 7, generator=g), -1)
    v = torch.randn(2, 3, 7, 4, generator=g)
    for bits in (2, 4, 8):
        errors = {}
        for share in SHARES:
            end = p.max() * share
            q = fake_quantize(p, torch.zeros(()), end, bits)
            errors[float(end)] = float(((q - p).double() @ v.double()).square().sum())
        quantizer = ActivationQuantizer(bits)
        found = float(best_end(p, v, quantizer))
        heads = best_end(p, v, ActivationQuantizer(bits, heads=3))
        alone = [best_end(p[:, i], v[:, i], quantizer) for i in range(3)]
        assert heads.tolist() == [float(end) for end in alone]
        nearest = min(errors, key=lambda end: abs(end - found))
        assert abs(nearest - found) < 1e-6
        assert errors[nearest] <= min(errors.values()) * (1 + 1e-4)


def test_all_quantized_probabilities_get_a_range_from_zero():
    teacher = tiny_vit()
    graph = trace(teacher.module, teacher.example())
    student = build_student(
        graph, BitWidths(4, 3), Quantization(placement="vit", range="minmax"), ()
    )
    images = torch.randn(6, *teacher.input_shape)
    with torch.no_grad(), observing(student):
        student(images)
    before = {n: t.clone() for n, t in student.state_dict().items()}
    attentions = find_attentions(graph)
    assert fit_probabilities(student, attentions, images) == 2
    nodes = {node.name: node for node in student.graph.nodes}
    changed = {n for n, t in student.state_dict().items() if not torch.equal(t, before[n])}
    found = {}
    for attention in attentions:
        node = nodes[attention.output].all_input_nodes[0]
        quantizer = called_module(student, node)
        assert isinstance(quantizer, ActivationQuantizer)
        assert quantizer.range_min == 0 and 0 < quantizer.range_max <= 1
        found[quantizer] = quantizer.range_max.clone()
        quantizer.shrink = 0.5
        changed -= {f"{node.target}.range_min", f"{node.target}.range_max"}
    assert changed == set()
    fit_probabilities(student, attentions, images)
    assert all(torch.equal(q.range_max, end / 2) for q, end in found.items())


def test_networks_without_quantized_probabilities_stay():
    teacher = tiny_vit()
    graph = trace(teacher.module, teacher.example())
    student = build_student(graph, BitWidths(4, 4), Quantization(placement="all_inputs"), ())
    assert fit_probabilities(student, find_attentions(graph), teacher.example()) == 0
