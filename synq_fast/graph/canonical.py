"""Calls of functions with constant weights as the plain layers that they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

Shapes = Callable[[fx.Node], torch.Size | None]
Layers = dict[str, nn.Module]

_CONVOLUTIONS: dict[object, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    functional.conv1d: nn.Conv1d,
    functional.conv2d: nn.Conv2d,
    functional.conv3d: nn.Conv3d,
}
_DIMENSIONS = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}


def plain_layers(graph: fx.Graph, root: nn.Module, shape_of: Shapes) -> Layers:
    """Turn calls of ``conv*d``, ``linear`` and evaluation ``batch_norm`` into plain layers.

    Layers with a forward of their own (padding of their own, standardised weights, an activation
    in a normalisation) are traced down to these functions. A weight that does not depend on the
    images is computed once and becomes the layer's parameter; parameters that are used as they are
    stay shared with ``root``.

    Args:
        graph: traced from ``root``, changed in place.
        root: holds the tensors that the graph reads.
        shape_of: shape of a node's value.

    Returns:
        The layers by the name that the graph calls them by: that of the module they come from.
    """
    found = _Found(graph, root)
    for node in list(graph.nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        shape = shape_of(node.args[0])
        kind = _CONVOLUTIONS.get(node.target)
        if kind is not None and shape is not None and len(shape) == _DIMENSIONS[kind]:
            found.layer(node, _convolution_arguments(node), lambda a, k=kind: _convolution(k, a))
        elif node.target is functional.linear:
            found.layer(node, _named(node, "input", "weight", "bias"), _linear)
        elif node.target is functional.batch_norm and shape is not None and len(shape) == 4:
            arguments = _named(
                node, "input", "running_mean", "running_var", "weight", "bias", "training",
                "momentum", "eps",
            )  # fmt: skip
            if arguments.get("running_mean") is not None and not arguments.get("training", False):
                found.layer(node, arguments, _batch_norm)
    return found.layers


class _Found:
    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.graph, self.root = graph, root
        self.layers: Layers = {}
        self.constants = constants(graph)
        self._by_call: dict[object, str] = {}
        self._taken = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}

    def layer(
        self,
        node: fx.Node,
        arguments: dict[str, Any],
        build: Callable[[Mapping[str, Any]], nn.Module],
    ) -> None:
        """Let a node call the layer that ``build`` makes, where all but its input is constant."""
        source = arguments.pop("input")
        nodes = [value for value in arguments.values() if isinstance(value, fx.Node)]
        if source in self.constants or not nodes or not self.constants.issuperset(nodes):
            return
        call = (node.target, *((name, _expression(value)) for name, value in arguments.items()))
        if call not in self._by_call:
            values = {name: constant(value, self.root) for name, value in arguments.items()}
            name = self._name(node, nodes[0])
            self.layers[name] = build(values).train(False)
            self._by_call[call] = name
        node.op, node.target = "call_module", self._by_call[call]
        node.args, node.kwargs = (source,), {}

    def _name(self, node: fx.Node, weight: fx.Node) -> str:
        """The path of the module that the call was traced in."""
        stack = list(node.meta.get("nn_module_stack", {}).values())
        path = str(stack[-1][0]) if stack else ""
        if not path and weight.op == "get_attr":
            path = str(weight.target).rpartition(".")[0]
        path = path or node.name
        name, count = path, 1
        while name in self._taken:
            name, count = f"{path}_{count}", count + 1
        self._taken.add(name)
        return name


def constants(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values are the same for all images."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        sources = node.all_input_nodes
        computed = node.op in ("call_function", "call_method") and bool(sources)
        if node.op == "get_attr" or (computed and found.issuperset(sources)):
            found.add(node)
    return found


def constant(value: Any, root: nn.Module) -> Any:
    """What a constant node gives; other values as they are."""
    if not isinstance(value, fx.Node):
        return value
    if value.op == "get_attr":
        owner: Any = root
        for part in str(value.target).split("."):
            owner = getattr(owner, part)
        return owner
    with torch.no_grad():
        args = fx.node.map_arg(value.args, lambda source: constant(source, root))
        kwargs = fx.node.map_arg(value.kwargs, lambda source: constant(source, root))
        if value.op == "call_method":
            return getattr(args[0], str(value.target))(*args[1:], **kwargs)
        function: Any = value.target
        return function(*args, **kwargs)


def _expression(value: Any) -> object:
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


def _parameter(value: Tensor | None) -> nn.Parameter | None:
    if value is None or isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value.detach().clone(), requires_grad=value.is_floating_point())


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
    layer.weight, layer.bias = _parameter(weight), _parameter(bias)
    return layer


def _linear(values: Mapping[str, Any]) -> nn.Module:
    weight, bias = values["weight"], values.get("bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight, layer.bias = _parameter(weight), _parameter(bias)
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
        layer.weight = _parameter(torch.ones_like(mean) if weight is None else weight)
        layer.bias = _parameter(torch.zeros_like(mean) if bias is None else bias)
    return layer
