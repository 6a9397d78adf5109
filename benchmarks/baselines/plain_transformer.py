"""A quantized transformer as one builds it from what PyTorch ships: learnable fake quantization."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from synq_fast.graph import called_module
from synq_fast.quant import ActivationQuantizer
from synq_fast.quant.layers import QuantizedConv2d, QuantizedLinear, WeightQuantized
from synq_fast.quant.quantizer import Grid


class LearnableActivation(nn.Module):
    """``torch.ao``'s learnable fake quantizer of a whole tensor."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        """Begin at the grid that a quantizer has."""
        super().__init__()
        self.scale, self.zero_point, self.low, self.high = _learnable(quantizer.grid())

    def forward(self, x: Tensor) -> Tensor:
        """Quantize a value of any shape."""
        factor = 1 / math.sqrt(x[0].numel() * self.high)
        y: Tensor = torch._fake_quantize_learnable_per_tensor_affine(
            x, self.scale, self.zero_point, self.low, self.high, factor
        )
        return y


class LearnableLayer(nn.Module):
    """A layer whose weight passes ``torch.ao``'s learnable fake quantizer of each channel."""

    def __init__(self, layer: WeightQuantized) -> None:
        """Share the layer's weight and begin at its grid."""
        super().__init__()
        self.layer = layer
        self.scale, self.zero_point, self.low, self.high = _learnable(layer.grid())

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes."""
        layer = self.layer
        factor = 1 / math.sqrt(layer.weight[0].numel() * self.high)
        weight = torch._fake_quantize_learnable_per_channel_affine(
            layer.weight, self.scale, self.zero_point, 0, self.low, self.high, factor
        )
        if isinstance(layer, QuantizedLinear):
            return functional.linear(x, weight, layer.bias)
        assert isinstance(layer, QuantizedConv2d)
        y: Tensor = layer._conv_forward(x, weight, layer.bias)
        return y


def plain_transformer(student: fx.GraphModule) -> fx.GraphModule:
    """The same network with PyTorch's quantizers, which have parameters of their own."""
    plain = copy.deepcopy(student)
    for node in plain.graph.nodes:
        module = called_module(plain, node)
        if isinstance(module, ActivationQuantizer):
            made: nn.Module = LearnableActivation(module)
        elif isinstance(module, WeightQuantized):
            made = LearnableLayer(module)
        else:
            continue
        node.target = f"plain_{node.name}"
        plain.add_submodule(node.target, made)
    plain.recompile()
    return plain


def _learnable(grid: Grid) -> tuple[nn.Parameter, nn.Parameter, int, int]:
    """Scale, zero point and codes in PyTorch's convention: steps, and codes from zero."""
    levels = grid.high - grid.low
    scale = (1 / grid.scale).detach().reshape(-1).clone()
    zero = (-grid.zero_point - grid.low).detach().reshape(-1).clone().clamp(0, levels)
    return nn.Parameter(scale), nn.Parameter(zero), 0, levels
