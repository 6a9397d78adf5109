"""Functions of transformers and the learned quantizers behind them as one op where they meet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.nn import functional

from synq_fast import ops
from synq_fast.graph import called_module
from synq_fast.graph.attention import factor_of, is_softmax_of_rows
from synq_fast.graph.nodes import is_shape
from synq_fast.quant.activations import ActivationQuantizer
from synq_fast.quant.attention_fusion import fuse_attentions


class QuantizedFunction(nn.Module, ABC):
    """A function and the quantizer behind it, as one op; the function's value is not stored."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        """Share the quantizer."""
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """The quantized value of ``x`` of any shape."""
        quantizer = self.quantizer
        if not quantizer.quantizes_all(x):
            y: Tensor = quantizer(self.function(x, *parameters))
            return y
        return self.quantized(x, *parameters)

    @abstractmethod
    def function(self, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """The float value."""

    @abstractmethod
    def quantized(self, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """The value on the grid, in one op."""


class Activation(NamedTuple):
    """An activation function that joins a quantizer."""

    module: type[nn.Module]
    function: Callable[..., Tensor]
    quantized: Callable[..., Tensor]


ACTIVATIONS = (
    Activation(nn.GELU, functional.gelu, ops.gelu_fake_quantize),
    Activation(nn.SiLU, functional.silu, ops.silu_fake_quantize),
    Activation(nn.Hardswish, functional.hardswish, ops.hardswish_fake_quantize),
)


class QuantizedElementwise(QuantizedFunction):
    """An activation function of each element, which quantizers over small floats join too."""

    def __init__(self, quantizer: ActivationQuantizer, activation: Activation) -> None:
        """Share the quantizer."""
        super().__init__(quantizer)
        self.activation = activation

    def function(self, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """The activation function of ``x``."""
        return self.activation.function(x)

    def quantized(self, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """The activation function of ``x`` on the grid."""
        grid, factor = self.quantizer.learned(x.shape)
        return self.activation.quantized(
            x,
            grid.scale,
            grid.zero_point,
            self.quantizer.bits,
            gradient_scale=factor,
            grid="minifloat" if self.quantizer.small_floats else "uniform",
        )


class QuantizedLayerNorm(QuantizedFunction):
    """LayerNorm over the last dimension, with its factor and summand (C,) as parameters."""

    def __init__(self, quantizer: ActivationQuantizer, eps: float) -> None:
        """Share the quantizer; ``eps`` is the norm's."""
        super().__init__(quantizer)
        self.eps = eps

    def function(self, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """The norm of ``x``."""
        weight, bias = parameters
        return functional.layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def quantized(self, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """The norm of ``x`` on the grid."""
        weight, bias = parameters
        grid, factor = self.quantizer.learned(x.shape)
        return ops.layer_norm_fake_quantize(
            x,
            weight,
            bias,
            grid.scale,
            grid.zero_point,
            self.quantizer.bits,
            eps=self.eps,
            gradient_scale=factor,
        )


class QuantizedSoftmax(QuantizedFunction):
    """Softmax over the last dimension of a multiple of the logits; its range begins at zero."""

    def __init__(self, quantizer: ActivationQuantizer, alpha: float) -> None:
        """Share the quantizer; ``alpha`` is what the logits are multiplied by."""
        super().__init__(quantizer)
        self.alpha = alpha

    def function(self, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """The probabilities of logits."""
        return functional.softmax(self.alpha * x, dim=-1)

    def quantized(self, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """The probabilities of logits on the grid."""
        scale, factor = self.quantizer.of_probabilities(x.shape)
        return ops.softmax_fake_quantize(
            x,
            scale,
            self.quantizer.bits,
            alpha=self.alpha,
            gradient_scale=factor,
            grid=self.quantizer.spacing,
        )


def fuse_learned(module: fx.GraphModule, keep: Collection[str] = ()) -> None:
    """Let quantizers take over an attention, and those that join it a function, in place.

    Args:
        module: a quantized network; its graph is changed, what it calls is shared.
        keep: names of nodes whose values are read elsewhere, so that they must stay.
    """
    fuse_attentions(module, keep)
    for node in list(module.graph.nodes):
        quantizer = called_module(module, node)
        if not isinstance(quantizer, ActivationQuantizer) or not quantizer.joins:
            continue
        if quantizer.heads is not None:
            continue
        source = node.all_input_nodes[0]
        readers = [user for user in source.users if not is_shape(user)]
        if readers != [node] or source.name in keep:
            continue
        found = _function(module, source, quantizer, keep)
        if found is None:
            continue
        made, inputs = found
        node.target, node.args = f"fused_{node.name}", inputs
        module.add_submodule(node.target, made)
        # Its size is that of what it was computed from.
        before = source.all_input_nodes[0]
        source.replace_all_uses_with(before)
        module.graph.erase_node(source)
        if not before.users:
            module.graph.erase_node(before)  # the factor, which the op took over


def _function(
    module: fx.GraphModule,
    node: fx.Node,
    quantizer: ActivationQuantizer,
    keep: Collection[str],
) -> tuple[QuantizedFunction, tuple[fx.Node | None, ...]] | None:
    """What joins a node and a quantizer, and what it reads; None for other nodes."""
    x = node.all_input_nodes[0] if node.all_input_nodes else node
    if quantizer.from_zero:
        if not is_softmax_of_rows(module, node):
            return None
        factor = factor_of(x)
        if factor is None or len(x.users) > 1 or x.name in keep:
            return QuantizedSoftmax(quantizer, 1.0), (x,)
        return QuantizedSoftmax(quantizer, factor), (x.all_input_nodes[0],)
    for activation in ACTIVATIONS:
        if _calls(module, node, activation):
            return QuantizedElementwise(quantizer, activation), (x,)
    if quantizer.small_floats:
        return None
    called = called_module(module, node)
    if type(called) is nn.LayerNorm and len(called.normalized_shape) == 1:
        with module.graph.inserting_before(node):
            parameters = tuple(
                module.graph.get_attr(f"{node.target}.{name}")
                if getattr(called, name) is not None
                else None
                for name in ("weight", "bias")
            )
        return QuantizedLayerNorm(quantizer, called.eps), (x, *parameters)
    if node.op == "call_function" and node.target is functional.layer_norm:
        names = ("input", "normalized_shape", "weight", "bias", "eps")
        given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if len(given["normalized_shape"]) == 1:
            made = QuantizedLayerNorm(quantizer, given.get("eps", 1e-5))
            return made, (x, given.get("weight"), given.get("bias"))
    return None


def _calls(module: fx.GraphModule, node: fx.Node, activation: Activation) -> bool:
    """Whether a node calls an activation function, not an approximation of it.

    A traced network's calls write to none of their operands.
    """
    called = called_module(module, node)
    if called is not None:
        exact = getattr(called, "approximate", "none") == "none"
        return type(called) is activation.module and exact
    idle = {"approximate": "none", "inplace": False}
    return (
        node.op == "call_function"
        and node.target is activation.function
        and not any(node.args[1:])
        and all(value == idle.get(name) for name, value in node.kwargs.items())
    )
