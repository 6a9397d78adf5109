"""Which placement follows from a network: SynQ's where ReLU is its only activation function."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from synq_fast.graph import called_module
from synq_fast.graph.leaves import is_kept
from synq_fast.quant.grid import AVERAGES, handed_on, operation, origins
from synq_fast.quant.layers import is_quantizable

_SUMS = frozenset({"add", "__add__", "__radd__", "sub", "__sub__", "__rsub__"})
_LINEAR_LAYERS = (_ConvNd, nn.Linear)


def only_relu(
    graph_module: fx.GraphModule,
    is_relu: Callable[[fx.Node], bool],
    leaves: Collection[str] = (),
) -> bool:
    """Whether what convolutions and linear layers read passes no activation function but ReLU.

    Outputs of convolutions and BatchNorms without an activation function are allowed, as in the
    linear bottlenecks of MobileNetV2 (which stay in floating point in the published results). A
    product of activations (squeeze and excitation), a softmax, a LayerNorm or an unknown function
    is not.

    Args:
        graph_module: a traced network, quantized or not.
        is_relu: recognises the calls of ReLU and ReLU6.
        leaves: qualified names of submodules that the user keeps whole; allowed too.
    """
    image = image_nodes(graph_module)

    def is_allowed(node: fx.Node) -> bool:
        module = called_module(graph_module, node)
        return (
            is_relu(node)
            or node in image
            or node.op == "get_attr"
            or isinstance(module, _LINEAR_LAYERS)
            or (module is not None and is_kept(str(node.target), leaves))
        )

    def up_to_relu(graph_module: fx.GraphModule, node: fx.Node) -> list[fx.Node] | None:
        return None if is_relu(node) else handed_on(graph_module, node)

    def through(graph_module: fx.GraphModule, node: fx.Node) -> list[fx.Node] | None:
        # A BatchNorm behind a ReLU moves all that the ReLU's quantizer has put on the grid.
        moved = isinstance(called_module(graph_module, node), _BatchNorm) and any(
            map(is_relu, origins(graph_module, node.all_input_nodes[0], up_to_relu))
        )
        return None if moved or is_allowed(node) else _linear(graph_module, node)

    nodes = graph_module.graph.nodes
    read = [n.all_input_nodes[0] for n in nodes if is_quantizable(called_module(graph_module, n))]
    made_by = dict.fromkeys(m for node in read for m in origins(graph_module, node, through))
    return any(map(is_relu, nodes)) and all(map(is_allowed, made_by))


def image_nodes(graph_module: fx.GraphModule) -> set[fx.Node]:
    """The image, and what functions without parameters make of it before the first layer."""
    found: set[fx.Node] = set()
    for node in graph_module.graph.nodes:
        operands, module = node.all_input_nodes, called_module(graph_module, node)
        plain = module is None or next(module.parameters(), None) is None
        if node.op == "placeholder" or (operands and plain and found.issuperset(operands)):
            found.add(node)
    return found


def _linear(graph_module: fx.GraphModule, node: fx.Node) -> list[fx.Node] | None:
    """The operands of an operation that is linear in them; None for all others."""
    name = operation(graph_module, node)
    module = called_module(graph_module, node)
    if isinstance(module, _BatchNorm) or name in AVERAGES:
        return node.all_input_nodes[:1]
    if module is None and name in _SUMS:
        return list(node.all_input_nodes)
    return handed_on(graph_module, node)
