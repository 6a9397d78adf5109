"""Which values an integer runtime keeps as tensors, once it has fused what it can."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from synq_fast.graph import called_module, constants, shape_of
from synq_fast.quant.grid import handed_on, operation, origins
from synq_fast.quant.layers import is_quantizable

_JOINS = frozenset({"cat", "concat", "concatenate", "stack"})


def kept_values(
    graph_module: fx.GraphModule,
    is_relu: Callable[[fx.Node], bool],
    of: Callable[[fx.Node], bool] = lambda node: True,
) -> list[fx.Node]:
    """Every value that is computed, at the end of what computes it in one piece, but the logits.

    A layer, the BatchNorm behind it and a ReLU behind either are one piece, where nobody else
    reads what lies between. What only moves or selects values is none of its own; what joins
    values of several pieces is, since they lie on different grids.

    Args:
        graph_module: a traced network, quantized or not.
        is_relu: recognises the calls of ReLU and ReLU6.
        of: what is looked at; by default everything.
    """
    fixed = constants(graph_module.graph)
    (logits,) = graph_module.graph.output_node().all_input_nodes
    result = set(origins(graph_module, logits))

    def is_computed(node: fx.Node) -> bool:
        if node.op in ("get_attr", "output") or node in fixed or shape_of(node) is None:
            return False
        if node.op == "placeholder" or operation(graph_module, node) in _JOINS:
            return True
        return handed_on(graph_module, node) is None

    def end(node: fx.Node) -> fx.Node:
        while len(node.users) == 1:
            (reader,) = node.users
            norms = isinstance(called_module(graph_module, reader), nn.BatchNorm2d)
            if not is_relu(reader) and not (norms and _is_layer(graph_module, node)):
                break
            node = reader
        return node

    ends = dict.fromkeys(end(n) for n in graph_module.graph.nodes if of(n) and is_computed(n))
    return [n for n in ends if n is not logits and n not in result]


def _is_layer(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    return is_quantizable(called_module(graph_module, node))
