"""Which operations hand quantized values on as they are, so that what reads them sees the grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import fx, nn

from synq_fast.graph import called_module
from synq_fast.graph.nodes import is_foreign

# Zero is a value of every grid whose range holds it, so ReLU and padding stay on the grid. Averages
# do not: the mean of quantized values lies between two of them.
_MODULES = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.Unfold,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
    nn.ReLU,
)
_MOVING = """
adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d cat chunk clone concat concatenate
contiguous detach dropout dropout1d dropout2d dropout3d expand expand_as flatten flip getitem
index_select interpolate max_pool1d max_pool2d max_pool3d moveaxis movedim narrow pad permute
pixel_shuffle pixel_unshuffle relu repeat reshape reshape_as roll select split split_with_sizes
squeeze stack swapaxes swapdims t tensor_split transpose unbind unflatten unfold unsqueeze upsample
view view_as
"""
_NAMES = frozenset(_MOVING.split())
_POOLS = ("AvgPool{}d", "AdaptiveAvgPool{}d", "avg_pool{}d", "adaptive_avg_pool{}d")
AVERAGES = frozenset({"mean", *(pool.format(n) for pool in _POOLS for n in (1, 2, 3))})
"""Names of operations that average."""
_JOINS = frozenset({"cat", "concat", "concatenate", "stack"})
# torchvision's, which torch.fx does not look into; nothing in evaluation mode.
_IDENTITIES = frozenset({"stochastic_depth"})


def operation(graph_module: fx.GraphModule, node: fx.Node) -> str:
    """What a person would call the operation of a node: a class, or a function's name."""
    module = called_module(graph_module, node)
    if module is not None:
        return type(module).__name__
    if callable(node.target):
        return str(getattr(node.target, "__name__", node.target))
    return str(node.target)


def handed_on(graph_module: fx.GraphModule, node: fx.Node) -> list[fx.Node] | None:
    """The values that a node only moves, selects or joins; None where it computes new ones."""
    module = called_module(graph_module, node)
    if module is not None:
        return list(node.all_input_nodes) if type(module) in _MODULES else None
    if node.op not in ("call_function", "call_method"):
        return None
    name = operation(graph_module, node)
    if name in _IDENTITIES:
        return node.all_input_nodes[:1]
    if name not in _NAMES or is_foreign(node) or not _keeps_values(node, name):
        return None
    return list(node.all_input_nodes) if name in _JOINS else node.all_input_nodes[:1]


def origins(
    graph_module: fx.GraphModule,
    node: fx.Node,
    through: Callable[[fx.GraphModule, fx.Node], list[fx.Node] | None] = handed_on,
) -> Iterator[fx.Node]:
    """The nodes that made a value, behind everything that ``through`` looks through."""
    waiting, seen = [node], set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        behind = through(graph_module, current)
        if behind:
            waiting.extend(reversed(behind))
        else:
            yield current


def _keeps_values(node: fx.Node, name: str) -> bool:
    """Whether an operation hands values on with the arguments that it has here."""
    if name == "pad":
        return _argument(node, 3, "value", None) in (None, 0)
    if name in ("interpolate", "upsample"):
        return _argument(node, 3, "mode", "nearest") in ("nearest", "nearest-exact")
    if name.startswith("dropout") and node.op == "call_function":
        return _argument(node, 2, "training", True) is False
    return True


def _argument(node: fx.Node, index: int, name: str, default: object) -> object:
    return node.kwargs.get(name, node.args[index] if len(node.args) > index else default)
