"""Calls of functions with constant weights as the plain layers that they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from synq_fast.graph.nodes import attribute, constants, run_node, shape_of

Layers = dict[str, nn.Module]

_CONVOLUTIONS: dict[object, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    functional.conv1d: nn.Conv1d,
    functional.conv2d: nn.Conv2d,
    functional.conv3d: nn.Conv3d,
}
_RELUS = (torch.relu, functional.relu, functional.relu6)
_DROPOUTS = (functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d)
_DIMENSIONS = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}


def plain_layers(graph: fx.Graph, root: nn.Module) -> Layers:
    """Turn calls of ``conv*d``, ``linear`` and evaluation ``batch_norm`` into plain layers.

    Layers with a forward of their own (padding of their own, standardised weights, an activation
    in a normalisation) are traced down to these functions. A weight that does not depend on the
    images is computed once and becomes the layer's parameter; parameters that are used as they are
    stay shared with ``root``. What the logits do not need is taken out.

    Args:
        graph: traced from ``root``, its shapes noted; changed in place.
        root: holds the tensors that the graph reads.

    Returns:
        The layers by the name that the graph calls them by: that of the module they come from,
        or one like it.
    """
    found = _Found(graph, root)
    for node in list(graph.nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        shape = shape_of(node.args[0])
        kind = _CONVOLUTIONS.get(node.target)
        if kind is not None and shape is not None and len(shape) == _DIMENSIONS[kind]:
            found.layer(node, _convolution_arguments(node), partial(_convolution, kind))
        elif node.target is functional.linear:
            found.layer(node, _named(node, "input", "weight", "bias"), _linear)
        elif node.target is functional.batch_norm and shape is not None and len(shape) == 4:
            arguments = _named(
                node, "input", "running_mean", "running_var", "weight", "bias", "training",
                "momentum", "eps",
            )  # fmt: skip
            if arguments.get("running_mean") is not None and not arguments.get("training", False):
                found.layer(node, arguments, _batch_norm)
    # Nothing but the values counts: what is written to lies in private copies.
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return found.named()


def without_gaps(graph: fx.Graph, root: nn.Module, layers: Layers) -> None:
    """Take out what does nothing before BatchNorms and ReLUs, whose neighbours are looked for.

    timm's normalisations with an activation have a place for a dropout between the two. What other
    operations read stays, under the name that it has.

    Args:
        graph: changed in place.
        root: holds the modules that it calls.
        layers: of ``plain_layers``, which it calls instead.
    """

    def called(node: fx.Node) -> nn.Module | None:
        name = str(node.target)
        if node.op != "call_module":
            return None
        return layers[name] if name in layers else root.get_submodule(name)

    def joins(node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(called(node), nn.ReLU | nn.ReLU6 | nn.BatchNorm2d)
        return node.target in (_RELUS if node.op == "call_function" else ("relu",))

    def does_nothing(node: fx.Node) -> bool:
        if node.target in _DROPOUTS:
            return _named(node, "input", "p", "training").get("training", True) is False
        module = called(node)
        dropout = isinstance(module, nn.modules.dropout._DropoutNd) and not module.training
        return dropout or type(module) is nn.Identity

    for node in reversed(list(graph.nodes)):
        if node.users and all(map(joins, node.users)) and does_nothing(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)


class _Calls(NamedTuple):
    """One layer and the nodes that call it."""

    path: str
    """Of the module that the first call was traced in."""
    layer: nn.Module
    nodes: list[fx.Node]


class _Found:
    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.graph, self.root = graph, root
        self.constants = constants(graph)
        self._calls: dict[object, _Calls] = {}

    def layer(
        self,
        node: fx.Node,
        arguments: dict[str, Any],
        build: Callable[[Mapping[str, Any]], nn.Module],
    ) -> None:
        """Let a node call the layer that ``build`` makes, where all but its input is constant."""
        source = arguments.pop("input")
        nodes = [value for value in arguments.values() if isinstance(value, fx.Node)]
        if source in self.constants or not nodes or not self.constants.keys() >= set(nodes):
            return
        call = (node.target, *((name, _expression(value)) for name, value in arguments.items()))
        if call not in self._calls:
            values = {name: _constant(value, self.root) for name, value in arguments.items()}
            self._calls[call] = _Calls(_path(node, nodes[0]), build(values).train(False), [])
        calls = self._calls[call]
        calls.nodes.append(node)
        node.op, node.target = "call_module", calls.path
        node.args, node.kwargs = (source,), {}

    def named(self) -> Layers:
        """Give each layer the path of its module, where nothing else is called or read there."""
        ours = {node for calls in self._calls.values() for node in calls.nodes}
        taken = {str(n.target) for n in self.graph.nodes if n.op == "call_module" and n not in ours}
        reads = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        layers: Layers = {}
        for path, layer, nodes in self._calls.values():
            name, count = path, 1
            while name in taken or self._hides(layer, name, reads):
                name, count = f"{path}_{count}", count + 1
            taken.add(name)
            layers[name] = layer
            for node in nodes:
                node.target = name
        return layers

    def _hides(self, layer: nn.Module, name: str, reads: set[str]) -> bool:
        """Whether a layer of this name would give other tensors than those that are read there."""
        own = (*layer.named_parameters(), *layer.named_buffers())
        return name in reads or any(
            path in reads and attribute(self.root, path) is not tensor
            for path, tensor in ((f"{name}.{part}", tensor) for part, tensor in own)
        )


def _path(node: fx.Node, weight: fx.Node) -> str:
    """The path of the module that a call was traced in."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    if weight.op == "get_attr":
        # A module may use the weight of a part that it never calls.
        owner = str(weight.target).rpartition(".")[0]
        path = owner if not path or owner.startswith(f"{path}.") else path
    return path or node.name


def _constant(value: Any, root: nn.Module) -> Any:
    """What a constant node gives; other values as they are."""
    if not isinstance(value, fx.Node):
        return value
    # Each node once: a copy may be written to between its readers.
    known: dict[fx.Node, Any] = {}

    def constant(node: fx.Node) -> Any:
        if node not in known:
            args = fx.node.map_arg(node.args, constant)
            known[node] = run_node(root, node, args, fx.node.map_arg(node.kwargs, constant))
        return known[node]

    with torch.no_grad():
        return constant(value)


def _expression(value: Any) -> Any:
    """How a constant is computed, in a form that compares."""
    if not isinstance(value, fx.Node):
        return repr(value)
    if value.op == "get_attr":
        return value.target
    parts = fx.node.map_arg((value.args, value.kwargs), lambda source: _expression(source))
    return (value.op, value.target, repr(parts))


def _named(node: fx.Node, *names: str) -> dict[str, Any]:
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _convolution_arguments(node: fx.Node) -> dict[str, Any]:
    return _named(node, "input", "weight", "bias", "stride", "padding", "dilation", "groups")


def _assign(layer: nn.Module, name: str, value: Tensor | None) -> None:
    """Make a constant a layer's parameter; one that is a parameter already stays shared."""
    if value is not None and not isinstance(value, nn.Parameter):
        value = nn.Parameter(value.detach().clone())
    setattr(layer, name, value)


def _convolution(
    kind: type[nn.Conv1d | nn.Conv2d | nn.Conv3d], values: Mapping[str, Any]
) -> nn.Module:
    weight, bias = values["weight"], values.get("bias")
    groups = values.get("groups", 1)
    layer = kind(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=values.get("stride", 1),
        padding=values.get("padding", 0),
        dilation=values.get("dilation", 1),
        groups=groups,
        bias=bias is not None,
        device="meta",
    )
    _assign(layer, "weight", weight)
    _assign(layer, "bias", bias)
    return layer


def _linear(values: Mapping[str, Any]) -> nn.Module:
    weight, bias = values["weight"], values.get("bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    _assign(layer, "weight", weight)
    _assign(layer, "bias", bias)
    return layer


def _batch_norm(values: Mapping[str, Any]) -> nn.Module:
    mean, weight, bias = values["running_mean"], values.get("weight"), values.get("bias")
    affine = weight is not None or bias is not None
    layer = nn.BatchNorm2d(
        len(mean), values.get("eps", 1e-5), values.get("momentum", 0.1), affine, device="meta"
    )
    layer.running_mean, layer.running_var = mean, values["running_var"]
    layer.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=mean.device)
    if affine:
        _assign(layer, "weight", torch.ones_like(mean) if weight is None else weight)
        _assign(layer, "bias", torch.zeros_like(mean) if bias is None else bias)
    return layer
