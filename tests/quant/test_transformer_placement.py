"""Where the activations of a transformer are quantized."""

import pytest
import torch

from synq_fast.engine.student import build_student
from synq_fast.errors import ModelError
from synq_fast.graph import called_module
from synq_fast.graph.attention import find_attentions
from synq_fast.graph.trace import trace
from synq_fast.quant import ActivationQuantizer, BitWidths, coverage_of
from synq_fast.quant.settings import Quantization
from tests.engine.test_transformers import torchvision_swin
from tests.transformers import tiny_vit


def sites(placement: str) -> dict[str, int]:
    """What is quantized of each kind of value, and the least width."""
    teacher = tiny_vit()
    graph = trace(teacher.module, teacher.example())
    student = build_student(graph, BitWidths(4, 5), Quantization(placement=placement), ())
    found: dict[str, int] = {}
    for node in student.graph.nodes:
        quantizer = called_module(student, node)
        if isinstance(quantizer, ActivationQuantizer):
            source = node.all_input_nodes[0]
            module = called_module(student, source)
            kind = type(module).__name__ if module else source.name.rstrip("_0123456789")
            found[kind] = found.get(kind, 0) + 1
            assert quantizer.bits == (8 if source.op == "placeholder" else 5)
    assert coverage_of(student).inputs == coverage_of(student).inputs_of
    with torch.no_grad():
        assert student(teacher.example()).shape == (2, 3)
    return found


def test_what_layers_read_and_what_attention_multiplies():
    found = sites("vit")
    assert found == sites("auto")
    # The image; of two layers each what qkv, proj, fc1 and fc2 read, and q, k, P, V; the head.
    assert found["x"] == 1 and sum(found.values()) == 1 + 2 * (4 + 4) + 1
    assert found["softmax"] == 2 and found["gelu"] == 2
    assert not {"add", "matmul", "QuantizedLinear"} & found.keys()


def test_what_layers_and_sums_give():
    found = sites("vit_outputs")
    assert "softmax" not in found
    # Without the logits of the network; the class token and places are parameters.
    assert found["QuantizedLinear"] == 2 * 4 and found["QuantizedConv2d"] == 1
    assert found["LayerNorm"] == 5 and found["gelu"] == 2
    assert found["matmul"] == 4 and found["add"] == 4 and found["x"] == 1


def test_what_layers_read_leaves_products_in_float():
    assert "softmax" not in sites("all_inputs")


def test_there_is_no_relu():
    with pytest.raises(ModelError, match="finds no place"):
        sites("after_relu")


@pytest.mark.parametrize("version", [1, 2])
def test_probabilities_begin_at_zero_behind_a_dropout_too(version):
    graph = trace(torchvision_swin(version).eval(), torch.zeros(2, 3, 32, 32))
    student = build_student(graph, BitWidths(4, 4), Quantization(placement="vit"), ())
    begin = [m for m in student.modules() if isinstance(m, ActivationQuantizer) and m.from_zero]
    assert len(begin) == len(find_attentions(graph)) > 0
