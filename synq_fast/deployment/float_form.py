"""The network without its quantizers: what a deployed one is compared with in size and speed."""

from __future__ import annotations

import copy

from torch import fx, nn

from synq_fast.graph import called_module
from synq_fast.graph.nodes import copied
from synq_fast.quant.activations import ActivationQuantizer
from synq_fast.quant.layers import QuantizedConv2d, QuantizedLinear

_FLOAT: dict[type[nn.Module], type[nn.Module]] = {
    QuantizedConv2d: nn.Conv2d,
    QuantizedLinear: nn.Linear,
}


def float_form(student: fx.GraphModule) -> fx.GraphModule:
    """A copy of a fake-quantized network with plain layers that hold its float weights."""
    result = copied(student)
    for node in list(result.graph.nodes):
        module = called_module(student, node)
        if isinstance(module, ActivationQuantizer):
            node.replace_all_uses_with(node.all_input_nodes[0])
            result.graph.erase_node(node)
        elif module is not None and type(module) in _FLOAT:
            result.add_submodule(str(node.target), _plain(module))
    result.delete_all_unused_submodules()
    result.graph.lint()
    result.recompile()
    return result.eval().requires_grad_(False)


def _plain(layer: nn.Module) -> nn.Module:
    plain = copy.deepcopy(layer)
    plain.__class__ = _FLOAT[type(layer)]
    for name in ("clip", "ends"):
        del plain._buffers[name]
    del plain._parameters["gain"]
    return plain
