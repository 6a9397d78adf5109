"""Every layer of a traced network that multiplies by weights, quantized or not, and why not."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from synq_fast.graph import attribute, called_module, constants
from synq_fast.graph.leaves import is_kept
from synq_fast.graph.nodes import is_foreign
from synq_fast.quant.grid import operation
from synq_fast.quant.layers import WeightQuantized

_LAYERS = (_ConvNd, nn.Linear, nn.Bilinear)
_PLAIN = {
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
    nn.Bilinear,
}
# Their weights select, scale or shift; they multiply nothing with anything.
_NO_LAYERS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag)
_LAYER_FUNCTIONS = frozenset(
    {"linear", "bilinear"} | {f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)}
)
_MULTIPLYING = "matmul __matmul__ __rmatmul__ mm bmm mv addmm baddbmm einsum tensordot"
_PRODUCTS = frozenset(_MULTIPLYING.split())
_OPAQUE = frozenset({"multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "rnn_relu"})
_KEPT = "kept by quantization.leaf_modules"


@dataclass(frozen=True)
class WeightLayer:
    """One use of one weight."""

    name: str
    """Qualified name of the layer, or of the weight where a function uses it."""
    call: str
    """Name of the graph's node that uses it."""
    inputs: tuple[fx.Node, ...]
    """What the weight multiplies; empty inside a module or a function that stays whole."""
    reason: str | None
    """Why the weight is in floating point; None: it is quantized."""


def weight_layers(
    graph_module: fx.GraphModule, leaves: Collection[str] = ()
) -> Iterator[WeightLayer]:
    """Every use of a weight in the order of the graph.

    Convolutions of any dimension, transposed too, linear and bilinear layers, what attention and
    recurrent layers hold, and functions that multiply by a parameter or by something computed
    from one. Products of two activations (attention) have no weights and do not count.

    Args:
        graph_module: a quantized copy of a traced network.
        leaves: qualified names that the user keeps in floating point.
    """
    behind = constants(graph_module.graph)
    for node in graph_module.graph.nodes:
        module = called_module(graph_module, node)
        if module is not None:
            yield from _of_module(node, module, leaves)
        elif node.op in ("call_function", "call_method") and node not in behind:
            yield from _of_function(graph_module, node, behind)


_Constants = dict[fx.Node, tuple[fx.Node, ...]]


def _of_module(node: fx.Node, module: nn.Module, leaves: Collection[str]) -> Iterator[WeightLayer]:
    target = str(node.target)
    if isinstance(module, _LAYERS):
        inputs = node.all_input_nodes[: 2 if isinstance(module, nn.Bilinear) else 1]
        reason = None
        if not isinstance(module, WeightQuantized):
            kept = is_kept(target, leaves)
            reason = _KEPT if kept else _not_quantized(module)
        yield WeightLayer(target, node.name, tuple(inputs), reason)
        return
    why = ": quantization.leaf_modules" if is_kept(target, leaves) else ""
    inside = f"inside {type(module).__name__}, which stays whole{why}"
    for name, child in module.named_modules(prefix=target):
        for weight in _weights(child):
            # The two or more weights of attention and recurrent layers have names of their own.
            label = name if weight == "weight" else f"{name}.{weight}"
            yield WeightLayer(label, node.name, (), inside)


def _not_quantized(module: nn.Module) -> str:
    if parametrize.is_parametrized(module):
        return "its weight is parametrized"
    kind = type(module)
    if kind in (nn.Conv2d, nn.Linear):
        return "its call was not reached"
    if kind in _PLAIN:
        return f"{kind.__name__} has no quantizer here"
    base = next((b.__name__ for b in kind.__mro__ if b in _PLAIN), nn.Module.__name__)
    return f"{kind.__name__} is a {base} with a forward of its own"


def _weights(module: nn.Module) -> list[str]:
    """The names of a module's own parameters that multiply, as far as names and shapes tell."""
    if isinstance(module, _NO_LAYERS):
        return []
    if isinstance(module, _LAYERS):
        return ["weight"]
    own = module.named_parameters(recurse=False)
    return [n for n, p in own if p.dim() > 1 and "weight" in n]


def _of_function(
    graph_module: fx.GraphModule, node: fx.Node, behind: _Constants
) -> Iterator[WeightLayer]:
    name, operands = operation(graph_module, node), node.all_input_nodes
    matrices = [o for o in operands if _is_matrix(graph_module, behind.get(o, ()))]
    if name in _LAYER_FUNCTIONS or name in _PRODUCTS:
        images = tuple(operand for operand in operands if operand not in behind)
        if matrices:
            label = _label(behind[matrices[0]][0])
            yield WeightLayer(label, node.name, images, f"{name} has no quantizer here")
        elif name in _LAYER_FUNCTIONS:
            reason = "its weights are computed from the image"
            yield WeightLayer(node.name, node.name, images[:1], reason)
    elif is_foreign(node) or name in _OPAQUE:
        for operand in matrices:
            if operand.op == "get_attr" and "weight" in str(operand.target).rpartition(".")[2]:
                yield WeightLayer(
                    _label(operand), node.name, (), f"inside {name}, which stays whole"
                )


def _is_matrix(graph_module: fx.GraphModule, weights: tuple[fx.Node, ...]) -> bool:
    """Whether there is a parameter of two or more dimensions among those behind a constant."""
    values = (attribute(graph_module, str(node.target)) for node in weights)
    return any(isinstance(value, Tensor) and value.dim() > 1 for value in values)


def _label(weight: fx.Node) -> str:
    return str(weight.target).removesuffix(".weight")
