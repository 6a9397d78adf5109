"""Where activation quantizers go: by call site in the traced graph, never by module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from operator import is_not

import torch
from torch import fx, nn
from torch.nn import functional

from synq_fast.errors import ModelError
from synq_fast.quant.activations import ActivationQuantizer
from synq_fast.quant.layers import WeightQuantized, quantize_layers
from synq_fast.quant.tracing import called_module

IMAGE_BITS = 8
_RELU_MODULES = (nn.ReLU, nn.ReLU6)
_RELU_FUNCTIONS = {torch.relu, functional.relu, functional.relu6}
QuantizerFactory = Callable[[int], ActivationQuantizer]


def _is_relu(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    return (
        isinstance(called_module(graph_module, node), _RELU_MODULES)
        or (node.op == "call_function" and node.target in _RELU_FUNCTIONS)
        or (node.op == "call_method" and node.target == "relu")
    )


def after_relu(graph_module: fx.GraphModule) -> list[fx.Node]:
    """The outputs of every ReLU and ReLU6 call (the published placement of SynQ and GDFQ)."""
    return [node for node in graph_module.graph.nodes if _is_relu(graph_module, node)]


def all_inputs(graph_module: fx.GraphModule) -> list[fx.Node]:
    """Every distinct tensor that a convolution or linear layer reads, the image among them."""
    read = (
        node.all_input_nodes[0]
        for node in graph_module.graph.nodes
        if isinstance(called_module(graph_module, node), WeightQuantized)
    )
    return list(dict.fromkeys(read))


PLACEMENTS: dict[str, Callable[[fx.GraphModule], list[fx.Node]]] = {
    "after_relu": after_relu,
    "all_inputs": all_inputs,
}


def quantized_copy(
    teacher: fx.GraphModule,
    weight_bits: int,
    activation_bits: int,
    *,
    placement: str,
    make_quantizer: QuantizerFactory,
) -> fx.GraphModule:
    """A copy of a traced model with fake-quantized weights and activations.

    Quantizers are named after the tensor that they quantize (``quantize_<node name>``), so the
    names in a saved model say where they stand. The image, where it is quantized, keeps 8 bits.

    Raises:
        ModelError: the model has no layer to quantize, or the placement finds no call site.
    """
    student = copy.deepcopy(teacher)
    called = [called_module(student, node) for node in student.graph.nodes]
    if quantize_layers([layer for layer in called if layer is not None], weight_bits) == 0:
        raise ModelError("the model has no convolution or linear layer to quantize")
    sites = PLACEMENTS[placement](student)
    if not sites:
        raise ModelError(
            f'placement "{placement}" finds no place for an activation quantizer in this model; '
            f"try quantization.placement = "
            f'"{next(name for name in PLACEMENTS if name != placement)}"'
        )
    for site in sites:
        bits = IMAGE_BITS if site.op == "placeholder" else activation_bits
        name = f"quantize_{site.name}"
        student.add_submodule(name, make_quantizer(bits))
        with student.graph.inserting_after(site):
            quantized = student.graph.call_module(name, (site,))
        site.replace_all_uses_with(quantized, delete_user_cb=partial(is_not, quantized))
    student.graph.lint()
    student.recompile()
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    return student
