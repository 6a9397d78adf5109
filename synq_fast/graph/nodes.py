"""What a node of a traced network stands for."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

_SHAPE = "shape"
_RELU_FUNCTIONS: dict[object, float] = {
    torch.relu: math.inf,
    functional.relu: math.inf,
    functional.relu6: 6.0,
}
_RELU_MODULES: dict[type, float] = {nn.ReLU: math.inf, nn.ReLU6: 6.0}
TRACED_IMAGES = 2
"""What noted shapes are of; a value with another first dimension has no rows of single images."""


def copied(module: fx.GraphModule) -> fx.GraphModule:
    """The same modules under a graph that can be changed; names of nodes stay."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    return fx.GraphModule(module, graph)


def own_modules(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph, with modules of its own around the tensors that it shares."""
    known: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    for name, child in list(module.named_children()):
        setattr(module, name, copy.deepcopy(child, known))
    return module


def parameter_like(value: Tensor, like: Tensor) -> nn.Parameter:
    """A value as a parameter of the type of another, trained where that is."""
    return nn.Parameter(value.detach().to(like.dtype).contiguous(), like.requires_grad)


def attribute(module: nn.Module, name: str) -> Any:
    """What a module holds under a qualified name: a submodule, a parameter or a buffer."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def called_module(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The submodule that a node calls, or None where it calls something else."""
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def called_name(node: fx.Node) -> str:
    """The name of the function or method that a node calls; empty for other nodes."""
    if node.op not in ("call_function", "call_method"):
        return ""
    return str(getattr(node.target, "__name__", node.target))


def relu_bound(graph_module: fx.GraphModule, node: fx.Node) -> float | None:
    """Where a ReLU's output ends: 6 for ReLU6, infinity for ReLU; None if it is no ReLU."""
    kind = type(called_module(graph_module, node))
    if kind in _RELU_MODULES:
        return _RELU_MODULES[kind]
    if node.op == "call_method" and node.target == "relu":
        return math.inf
    return _RELU_FUNCTIONS.get(node.target) if node.op == "call_function" else None


def is_foreign(node: fx.Node) -> bool:
    """Whether a node calls a function that is not torch's own: its name says nothing then."""
    place = getattr(node.target, "__module__", None) or "torch"
    return node.op == "call_function" and place.split(".")[0] not in ("torch", "_operator")


def note_shape(node: fx.Node, value: Any) -> None:
    """Keep the shape of what a node gave for ``TRACED_IMAGES``; nothing for what is no tensor."""
    if isinstance(value, Tensor):
        node.meta[_SHAPE] = value.shape


def shape_of(node: fx.Node) -> torch.Size | None:
    """The shape that a node's value has for ``TRACED_IMAGES``; None where there is none."""
    shape: torch.Size | None = node.meta.get(_SHAPE)
    return shape


def constants(graph: fx.Graph) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """The nodes whose values are the same for all images, each with the tensors behind it.

    These are the reads of parameters and buffers, and all that is computed from them alone.
    """
    found: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node in graph.nodes:
        operands = node.all_input_nodes
        if node.op == "get_attr":
            found[node] = (node,)
        elif node.op.startswith("call_") and operands and found.keys() >= set(operands):
            found[node] = tuple(dict.fromkeys(t for o in operands for t in found[o]))
    return found


def run_node(root: nn.Module, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a node gives for the values of its arguments."""
    target: Any = node.target
    if node.op == "get_attr":
        return attribute(root, target)
    if node.op == "call_module":
        return attribute(root, target)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def is_shape(node: fx.Node) -> bool:
    """Whether a node asks for the size of a value."""
    return node.op == "call_function" and node.target is getattr and node.args[1] == "shape"
