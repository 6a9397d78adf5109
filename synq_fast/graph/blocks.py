"""Where a traced network can be cut: wherever exactly one value is alive."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from torch import fx, nn

from synq_fast.graph.nodes import TRACED_IMAGES, called_module, constants, shape_of

_LAYERS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Block:
    """A part of a network that reads one value and gives one, and holds a layer with weights."""

    entry: str
    """Name of the node whose value it reads."""
    exit: str
    """Name of the node whose value it gives."""


def find_blocks(graph_module: fx.GraphModule) -> tuple[Block, ...]:
    """The smallest blocks of a traced network, in order; together they are the network.

    A block ends with the last value before the next layer, or before what makes it smaller: a
    pooling layer belongs to the block that reads its result. So stems, residual blocks and heads
    are found in any network, without a model's name.

    Args:
        graph_module: the traced network, whose values have known shapes.
    """
    cuts = single_values(graph_module)
    layers = _layers_between(graph_module, cuts)
    blocks: list[Block] = []
    entry, holds_layer = 0, False
    for place, has_layer in enumerate(layers):
        shrinks = not has_layer and _size(cuts[place + 1]) < _size(cuts[place])
        if holds_layer and (has_layer or shrinks):
            blocks.append(Block(cuts[entry].name, cuts[place].name))
            entry, holds_layer = place, False
        holds_layer = holds_layer or has_layer
    if holds_layer:
        blocks.append(Block(cuts[entry].name, cuts[-1].name))
    elif blocks and entry < len(cuts) - 1:  # what follows the last layer belongs to it
        blocks[-1] = Block(blocks[-1].entry, cuts[-1].name)
    return tuple(blocks)


def subnetwork(graph_module: fx.GraphModule, entry: str, exit: str) -> fx.GraphModule:
    """The part of a network between two of its values; its modules are the network's own.

    Args:
        graph_module: the network.
        entry: name of the node whose value the part reads.
        exit: name of the node whose value it gives.
    """
    nodes = {node.name: node for node in graph_module.graph.nodes}
    first, last = nodes[entry], nodes[exit]
    needed, waiting = set(), [last]
    while waiting:
        node = waiting.pop()
        if node is not first and node not in needed:
            needed.add(node)
            waiting.extend(node.all_input_nodes)
    graph = fx.Graph()
    copies = {first: graph.placeholder("value")}
    copies[first].meta = dict(first.meta)
    for node in graph_module.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[last])
    part = fx.GraphModule(graph_module, graph)
    part.train(graph_module.training)
    return part


def single_values(graph_module: fx.GraphModule) -> list[fx.Node]:
    """The values, of a batch of images each, that are alone alive at some moment, in order."""
    graph = graph_module.graph
    fixed, position = constants(graph), {node: i for i, node in enumerate(graph.nodes)}
    last_use = {
        node: max((position[user] for user in node.users), default=-1)
        for node in graph.nodes
        if node not in fixed and node.op != "output"
    }
    found: dict[fx.Node, None] = {}
    alive: set[fx.Node] = set()
    for node, place in position.items():
        if node in last_use:
            alive.add(node)
        alive = {value for value in alive if last_use[value] > place}
        if len(alive) == 1:
            (value,) = alive
            shape = shape_of(value)
            if shape is not None and len(shape) > 1 and shape[0] == TRACED_IMAGES:
                found[value] = None
    return list(found)


def _layers_between(graph_module: fx.GraphModule, cuts: list[fx.Node]) -> list[bool]:
    """Whether there is a layer with weights between each cut and the next."""
    places = {node: i for i, node in enumerate(graph_module.graph.nodes)}
    ends = [places[cut] for cut in cuts]
    layers = [
        place
        for node, place in places.items()
        if isinstance(called_module(graph_module, node), _LAYERS)
    ]
    return [
        any(start < layer <= end for layer in layers) for start, end in itertools.pairwise(ends)
    ]


def _size(node: fx.Node) -> int:
    shape = shape_of(node)
    assert shape is not None
    return math.prod(shape)
