"""Convolution and linear layers whose weights are fake-quantized, once per optimizer step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from synq_fast import ops
from synq_fast.quant.held import Held
from synq_fast.quant.quantizer import Grid, grid_of


class WeightQuantized(Held):
    """Mixin: the layer's ``weight`` seen through its own asymmetric per-channel quantizer.

    The range of output channel c follows the exact minimum and maximum of the current
    ``weight[c]`` (GDFQ's quantizer, arXiv 2003.03603), times the channel's share in ``clip``
    where there is one; the gradient passes straight through.
    """

    weight: Tensor
    weight_bits: int
    clip: Tensor | None
    """(2, C) float32: shares of the minimum and of the maximum; None: all of them."""

    def derive(self) -> Tensor:
        """The fake-quantized weight, same shape and type as ``weight`` (float64: in float32)."""
        double = self.weight.dtype == torch.float64
        given = self.weight.float() if double else self.weight
        if self.clip is None:
            weight, _, _ = ops.fake_quantize_dynamic(given, self.weight_bits, axis=0)
        else:
            weight = ops.fake_quantize(given, *self.ranges(), self.weight_bits, axis=0)
        return weight.double() if double else weight

    @torch.no_grad()
    def ranges(self) -> tuple[Tensor, Tensor]:
        """Ends of the range of each output channel (C,), float32."""
        low, high = self.weight.float().flatten(1).aminmax(dim=1)
        return (low, high) if self.clip is None else (low * self.clip[0], high * self.clip[1])

    def grid(self) -> Grid:
        """Scale and zero point of each output channel of the current weights."""
        return grid_of(*self.ranges(), self.weight_bits)

    @torch.no_grad()
    def clip_ranges(self) -> None:
        """Take the shares of the extremes with which the weights have the least error."""
        ends = ops.search_range(self.weight.float(), self.weight_bits, axis=0)
        self.clip = None
        shares = (found / whole for found, whole in zip(ends, self.ranges(), strict=True))
        self.clip = torch.stack(list(shares)).nan_to_num(1.0, 1.0, 1.0)

    def quantized_weight(self) -> Tensor:
        """The weight that the layer computes with."""
        weight: Tensor = self.value()
        return weight


class QuantizedConv2d(WeightQuantized, nn.Conv2d):
    """``nn.Conv2d`` with a fake-quantized weight and a floating-point bias."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C_in, H, W) with the quantized weight."""
        y: Tensor = self._conv_forward(input, self.quantized_weight(), self.bias)
        return y


class QuantizedLinear(WeightQuantized, nn.Linear):
    """``nn.Linear`` with a fake-quantized weight and a floating-point bias."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply (..., C_in) by the quantized weight."""
        return nn.functional.linear(input, self.quantized_weight(), self.bias)


_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: QuantizedConv2d,
    nn.Linear: QuantizedLinear,
}


def is_quantizable(module: nn.Module | None) -> bool:
    """Whether a module is a plain convolution or linear layer, or the quantized form of one."""
    return type(module) in _QUANTIZED or isinstance(module, WeightQuantized)


def quantize_layers(bits: Mapping[nn.Module, int], range: str = "minmax") -> int:
    """Turn every convolution and linear layer among some modules into its quantized form, in place.

    Parameters keep their identity and their names, so a float checkpoint still loads. Modules
    inside the given ones stay as they are: a leaf that tracing kept whole is in floating point.

    Args:
        bits: the modules, with the width of their weights.
        range: of each output channel, ``minmax``, or ``mse`` for the one with the least error.

    Returns:
        How many layers were turned.
    """
    count = 0
    for layer, width in bits.items():
        quantized = _QUANTIZED.get(type(layer))
        if quantized is not None:
            layer.__class__ = quantized
            assert isinstance(layer, WeightQuantized)
            layer.weight_bits = width
            layer.register_buffer("clip", None)
            if range == "mse":
                layer.clip_ranges()
            count += 1
    return count
