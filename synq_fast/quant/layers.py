"""Convolution and linear layers whose weights are fake-quantized, once per optimizer step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from synq_fast import ops
from synq_fast.quant.held import Held


class WeightQuantized(Held):
    """Mixin: the layer's ``weight`` seen through its own asymmetric per-channel quantizer.

    The range of output channel c is the exact minimum and maximum of ``weight[c]``, recomputed
    from the current weights; the gradient passes straight through (METHODS: GDFQ's quantizer).
    """

    weight: Tensor
    weight_bits: int

    def derive(self) -> Tensor:
        """The fake-quantized weight, same shape and type as ``weight`` (float64: in float32)."""
        double = self.weight.dtype == torch.float64
        given = self.weight.float() if double else self.weight
        weight, _, _ = ops.fake_quantize_dynamic(given, self.weight_bits, axis=0)
        return weight.double() if double else weight

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


_Layer = TypeVar("_Layer", bound=nn.Module)
_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: QuantizedConv2d,
    nn.Linear: QuantizedLinear,
}


def is_quantizable(module: nn.Module | None) -> bool:
    """Whether a module is a plain convolution or linear layer, or the quantized form of one."""
    return type(module) in _QUANTIZED or isinstance(module, WeightQuantized)


def quantize_layers(modules: Iterable[nn.Module], bits: int) -> int:
    """Turn every convolution and linear layer among ``modules`` into its quantized form, in place.

    Parameters keep their identity and their names, so a float checkpoint still loads. Modules
    inside the given ones stay as they are: a leaf that tracing kept whole is in floating point.

    Returns:
        How many layers were turned.
    """
    count = 0
    for layer in modules:
        quantized = _QUANTIZED.get(type(layer))
        if quantized is not None:
            layer.__class__ = quantized
            # nn.Module's stubs take every attribute for a tensor or a module.
            layer.weight_bits = bits  # type: ignore[assignment]
            count += 1
    return count
