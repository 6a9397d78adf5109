"""Functions of transformers and the learned quantizers behind them as one op where they meet."""

from __future__ import annotations

import math
from collections.abc import Collection

from torch import Tensor, fx, nn
from torch.nn import functional

from synq_fast import ops
from synq_fast.graph import called_module
from synq_fast.quant.activations import ActivationQuantizer
from synq_fast.quant.layers import lsq_scale
from synq_fast.quant.quantizer import learned_grid


class QuantizedGelu(nn.Module):
    """GELU and a quantizer whose range is learned; saves its input alone."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        """Share the quantizer."""
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        """Quantized GELU of ``x`` of any shape."""
        quantizer = self.quantizer
        if not is_plain(quantizer, x):
            y: Tensor = quantizer(functional.gelu(x))
            return y
        assert quantizer.gain is not None
        grid = learned_grid(
            quantizer.range_min, quantizer.range_max, quantizer.gain, quantizer.bits
        )
        elements = max(1, math.prod(x.shape[1:]))
        return ops.gelu_fake_quantize(
            x,
            grid.scale,
            grid.zero_point,
            quantizer.bits,
            gradient_scale=lsq_scale(elements, quantizer.bits),
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
        if not _is_gelu(module, source) or len(source.users) > 1 or source.name in keep:
            continue
        node.target, node.args = f"fused_{node.name}", source.args[:1]
        module.add_submodule(node.target, QuantizedGelu(quantizer))
        module.graph.erase_node(source)


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
