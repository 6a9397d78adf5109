"""The structure of a traced network: norms, residual bodies, class activation maps, blocks."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from synq_fast.errors import ModelError
from synq_fast.graph.attention import Attention, find_attentions
from synq_fast.graph.blocks import Block, find_blocks
from synq_fast.graph.nodes import called_module, shape_of
from synq_fast.graph.patches import is_layer_norm
from synq_fast.graph.taps import Tapped
from synq_fast.runtime.out_of_memory import pass_on_memory_errors

_ADDITIONS = {operator.add, torch.add, torch.ops.aten.add.Tensor}


@dataclass(frozen=True)
class Structure:
    """What a traced network offers to losses: names of nodes, the same in teacher and student."""

    norms: tuple[str, ...]
    """BatchNorm2d calls, in order of execution."""
    bodies: tuple[str, ...]
    """Output of each residual body before its addition; without any, those of all BatchNorms, or
    of all convolutions."""
    maps: tuple[str, ...]
    """Where class activation maps are read: the last convolution whose output is larger than 1 x 1
    and decides the logits, or the norm before the last attention if that comes later; empty where
    there is none."""
    blocks: tuple[Block, ...] = ()
    """The parts between which one value alone is alive, in order."""
    attentions: tuple[Attention, ...] = ()
    """In order of execution."""
    features: str = ""
    """What the layer that gives the logits reads; the logits, where no one layer gives them."""


def is_addition(node: fx.Node) -> bool:
    """Whether a node gives the plain sum of two values: not scaled, not into another tensor."""
    adds = node.target in _ADDITIONS if node.op == "call_function" else node.target == "add"
    return bool(
        node.op in ("call_function", "call_method")
        and adds
        and len(node.args) == 2
        and node.kwargs.get("alpha", 1) == 1
        and node.kwargs.keys() <= {"alpha"}
    )


def find_structure(graph_module: fx.GraphModule, example: Tensor) -> Structure:
    """Find the structure of a traced network.

    Args:
        graph_module: the traced float model.
        example: images (B, C, H, W) of the model's input size; values do not matter.
    """
    depth: dict[fx.Node, int] = {}
    norms, bodies, convolutions = [], [], []
    for node in graph_module.graph.nodes:
        kind = type(called_module(graph_module, node))
        is_convolution = kind is nn.Conv2d
        operands = node.all_input_nodes
        depth[node] = max((depth[operand] for operand in operands), default=0) + is_convolution
        if kind is nn.BatchNorm2d:
            norms.append(node.name)
        shape = shape_of(node)
        if is_convolution and shape is not None and math.prod(shape[2:]) > 1:
            convolutions.append(node.name)
        if is_addition(node) and len(operands) == 2:
            # The body is the branch with more convolutions behind it than the shortcut.
            body = max(operands, key=depth.__getitem__)
            if type(called_module(graph_module, body)) in (nn.BatchNorm2d, nn.Conv2d):
                bodies.append(body.name)
    # One branch may be added to several values.
    named = tuple(dict.fromkeys(bodies or norms or convolutions))
    # An auxiliary head, or a branch that is detached, has no part in the logits' gradient.
    attentions = find_attentions(graph_module)
    readable = _in_order(graph_module, [*convolutions, *_norms_before(graph_module, attentions)])
    last = next((n for n in readable[::-1] if _decides(graph_module, n, example)), None)
    maps = () if last is None else (last,)
    blocks = find_blocks(graph_module)
    return Structure(tuple(norms), named, maps, blocks, attentions, _features(graph_module))


def _in_order(graph_module: fx.GraphModule, names: Iterable[str]) -> list[str]:
    wanted = set(names)
    return [node.name for node in graph_module.graph.nodes if node.name in wanted]


def _norms_before(graph_module: fx.GraphModule, attentions: Sequence[Attention]) -> list[str]:
    """The LayerNorm that the queries of the last attention come from."""
    if not attentions:
        return []
    nodes = {node.name: node for node in graph_module.graph.nodes}
    node = nodes[attentions[-1].logits]
    while node.all_input_nodes and not is_layer_norm(graph_module, node):
        node = node.all_input_nodes[0]
    return [node.name] if is_layer_norm(graph_module, node) else []


def _features(graph_module: fx.GraphModule) -> str:
    """The input of the last layer with weights, if one value alone leads from it to the logits."""
    (logits,) = graph_module.graph.output_node().all_input_nodes
    node = logits
    while len(node.all_input_nodes) == 1:
        if isinstance(called_module(graph_module, node), nn.Linear | nn.Conv2d):
            return node.all_input_nodes[0].name
        node = node.all_input_nodes[0]
    return logits.name


@torch.enable_grad()
def _decides(graph_module: fx.GraphModule, name: str, example: Tensor) -> bool:
    """Whether the logits have a gradient at a node."""
    try:
        view = Tapped(graph_module, cam=name)(example)
        if not view.logits.requires_grad:
            return False
        assert view.cam_activation is not None
        total = view.logits.sum()
        (found,) = torch.autograd.grad(total, view.cam_activation, allow_unused=True)
    except RuntimeError as error:
        pass_on_memory_errors(error)
        reason = str(error).splitlines()[0]
        raise ModelError(f"the model cannot be differentiated: {reason}") from error
    return found is not None
