"""Functions of transformers and the learned quantizers behind them as one op where they meet."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional

from synq_fast import ops
from synq_fast.graph import called_module
from synq_fast.quant.activations import ActivationQuantizer
from synq_fast.quant.layers import lsq_scale
from synq_fast.quant.quantizer import Grid, learned_grid


class QuantizedFunction(nn.Module, ABC):
    """A function and the quantizer behind it, whose range is learned; its value is not stored."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        """Share the quantizer."""
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """The quantized value of ``x`` of any shape."""
        quantizer = self.quantizer
        if not is_plain(quantizer, x):
            y: Tensor = quantizer(self.function(x, *parameters))
            return y
        assert quantizer.gain is not None
        ends = quantizer.range_min, quantizer.range_max
        grid = learned_grid(*ends, quantizer.gain, quantizer.bits)
        factor = lsq_scale(max(1, math.prod(x.shape[1:])), quantizer.bits)
        return self.quantized(x, *parameters, grid=grid, gradient_scale=factor)

    @abstractmethod
    def function(self, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """The float value."""

    @abstractmethod
    def quantized(
        self, x: Tensor, *parameters: Tensor | None, grid: Grid, gradient_scale: float
    ) -> Tensor:
        """The value on the grid, in one op."""


class QuantizedGelu(QuantizedFunction):
    """GELU."""

    def function(self, x: Tensor, *parameters: Tensor | None) -> Tensor:
        """GELU of ``x``."""
        return functional.gelu(x)

    def quantized(
        self, x: Tensor, *parameters: Tensor | None, grid: Grid, gradient_scale: float
    ) -> Tensor:
        """GELU of ``x`` on the grid."""
        return ops.gelu_fake_quantize(
            x, grid.scale, grid.zero_point, self.quantizer.bits, gradient_scale=gradient_scale
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

    def quantized(
        self, x: Tensor, *parameters: Tensor | None, grid: Grid, gradient_scale: float
    ) -> Tensor:
        """The norm of ``x`` on the grid."""
        weight, bias = parameters
        return ops.layer_norm_fake_quantize(
            x,
            weight,
            bias,
            grid.scale,
            grid.zero_point,
            self.quantizer.bits,
            eps=self.eps,
            gradient_scale=gradient_scale,
        )


def is_plain(quantizer: ActivationQuantizer, x: Tensor) -> bool:
    """Whether a learned quantizer now does nothing but quantize all of a value."""
    return (
        quantizer.gain is not None
        and quantizer.observer is None
        and not quantizer.bypass
        and quantizer.keep == 1
        and x.is_floating_point()
        and x.dtype.itemsize <= 4
    )


def fuse_learned(module: fx.GraphModule, keep: Collection[str] = ()) -> None:
    """Let learned quantizers take over the function before them, in place.

    Args:
        module: a quantized network; its graph is changed, what it calls is shared.
        keep: names of nodes whose values are read elsewhere, so that they must stay.
    """
    for node in list(module.graph.nodes):
        quantizer = called_module(module, node)
        if not isinstance(quantizer, ActivationQuantizer) or quantizer.gain is None:
            continue
        source = node.all_input_nodes[0]
        readers = [user for user in source.users if not _is_shape(user)]
        if readers != [node] or source.name in keep:
            continue
        found = _function(module, source, quantizer)
        if found is None:
            continue
        made, parameters = found
        node.target, node.args = f"fused_{node.name}", (source.all_input_nodes[0], *parameters)
        module.add_submodule(node.target, made)
        # Its size is that of what it was computed from.
        source.replace_all_uses_with(source.all_input_nodes[0])
        module.graph.erase_node(source)


_Parameter = fx.Node | None


def _function(
    module: fx.GraphModule, node: fx.Node, quantizer: ActivationQuantizer
) -> tuple[QuantizedFunction, tuple[_Parameter, ...]] | None:
    """What joins a node and a quantizer, and the nodes of the parameters; None for other nodes."""
    if _is_gelu(module, node):
        return QuantizedGelu(quantizer), ()
    called = called_module(module, node)
    if type(called) is nn.LayerNorm and len(called.normalized_shape) == 1:
        with module.graph.inserting_before(node):
            parameters = tuple(
                module.graph.get_attr(f"{node.target}.{name}")
                if getattr(called, name) is not None
                else None
                for name in ("weight", "bias")
            )
        return QuantizedLayerNorm(quantizer, called.eps), parameters
    if node.op == "call_function" and node.target is functional.layer_norm:
        names = ("input", "normalized_shape", "weight", "bias", "eps")
        given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        if len(given["normalized_shape"]) == 1:
            made = QuantizedLayerNorm(quantizer, given.get("eps", 1e-5))
            return made, (given.get("weight"), given.get("bias"))
    return None


def _is_shape(node: fx.Node) -> bool:
    """Whether a node asks for the size of a value."""
    return node.op == "call_function" and node.target is getattr and node.args[1] == "shape"


def _is_gelu(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node calls the exact GELU, not an approximation of it."""
    called = called_module(module, node)
    if called is not None:
        return type(called) is nn.GELU and called.approximate == "none"
    return (
        node.op == "call_function"
        and node.target is functional.gelu
        and node.kwargs.get("approximate", "none") == "none"
        and len(node.args) == 1
    )
