"""Convolution and linear layers whose weights are fake-quantized, once per optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from synq_fast import ops
from synq_fast.quant.held import Held
from synq_fast.quant.quantizer import SMALLEST_GAIN, Grid, grid_of, learned_grid
from synq_fast.quant.symmetric import searched, symmetric_ends


def lsq_scale(elements: int, bits: int) -> float:
    """LSQ's factor on the gradient of a step that ``elements`` share (its section 2.2)."""
    return 1 / math.sqrt(elements * (2**bits - 1))


class WeightQuantized(Held):
    """Mixin: the layer's ``weight`` seen through its own per-channel quantizer.

    The range of output channel c follows the exact minimum and maximum of the current
    ``weight[c]`` (GDFQ's quantizer, arXiv 2003.03603), or the larger of the two in both directions
    at the widths in ``symmetric_at``, times the channel's share in ``clip`` where there is one;
    the gradient passes straight through. Where there is a ``gain``, each channel has the fixed
    range ``ends`` times its gain, which is trained (LSQ, arXiv 1902.08153).
    """

    weight: Tensor
    weight_bits: int
    symmetric_at: Collection[int] = ()
    """Widths at which the zero point is 0 and -2^(k-1) is no code: its opposite is none either."""
    clip: Tensor | None
    """(2, C) float32: shares of the minimum and of the maximum; None: all of them."""
    ends: Tensor | None
    """(2, C) float32: minimum and maximum of each channel's range where it is learned."""
    gain: nn.Parameter | None
    """(C,) float32: factor on both ends."""
    rounding: Callable[[], Tensor] | None = None
    """Makes the quantized weight instead, while something else than ``weight`` is trained."""

    def derive(self) -> Tensor:
        """The fake-quantized weight, same shape and type as ``weight`` (float64: in float32)."""
        double = self.weight.dtype == torch.float64
        given = self.weight.float() if double else self.weight
        if self.rounding is not None:
            weight = self.rounding()
        elif self.gain is not None:
            weight = self._on_learned_grid(given)
        elif self.clip is None and not self.is_symmetric:
            weight, _, _ = ops.fake_quantize_dynamic(given, self.weight_bits, axis=0)
        else:
            low, high = self.ranges()
            if self.is_symmetric:
                inside = torch.maximum(given, -self._of_rows(high))
                given = given + (inside - given).detach()
            weight = ops.fake_quantize(given, low, high, self.weight_bits, axis=0)
        return weight.double() if double else weight

    def _on_learned_grid(self, weight: Tensor) -> Tensor:
        grid = self.trained_grid()
        elements = max(1, weight[0].numel())
        if self.is_symmetric:
            assert self.gain is not None and self.ends is not None
            factor = lsq_scale(elements, self.weight_bits)
            gain = self.gain.detach() + factor * (self.gain - self.gain.detach())
            largest = self.ends[1] * gain.clamp_min(SMALLEST_GAIN)
            weight = torch.maximum(weight, -self._of_rows(largest))
        return ops.fake_quantize_learned(
            weight,
            grid.scale,
            grid.zero_point,
            self.weight_bits,
            axis=0,
            gradient_scale=lsq_scale(elements, self.weight_bits),
        )

    @property
    def is_symmetric(self) -> bool:
        """Whether the grid is symmetric at the present width."""
        return self.weight_bits in self.symmetric_at

    @torch.no_grad()
    def ranges(self) -> tuple[Tensor, Tensor]:
        """Ends of the range of each output channel (C,), float32."""
        if self.gain is not None:
            assert self.ends is not None
            gain = self.gain.clamp_min(SMALLEST_GAIN)
            return self.ends[0] * gain, self.ends[1] * gain
        low, high = self.weight.float().flatten(1).aminmax(dim=1)
        if self.is_symmetric:
            low, high = symmetric_ends(torch.maximum(-low, high), self.weight_bits)
        return (low, high) if self.clip is None else (low * self.clip[0], high * self.clip[1])

    def grid(self) -> Grid:
        """Scale and zero point of each output channel of the current weights."""
        if self.gain is None:
            grid = grid_of(*self.ranges(), self.weight_bits)
        else:
            grid = self.trained_grid()
            grid = grid._replace(scale=grid.scale.detach())
        return grid._replace(low=-grid.high) if self.is_symmetric else grid

    def _of_rows(self, values: Tensor) -> Tensor:
        """Values (C,) as they broadcast over the weight."""
        return values.view(-1, *(1,) * (self.weight.dim() - 1))

    def trained_grid(self) -> Grid:
        """The grid of a learned range, its scale a function of the gain."""
        assert self.gain is not None and self.ends is not None
        return learned_grid(self.ends[0], self.ends[1], self.gain, self.weight_bits)

    @torch.no_grad()
    def clip_ranges(self) -> None:
        """Take the shares of the extremes with which the weights have the least error."""
        self.clip = None
        shares = (
            found / whole for found, whole in zip(self._searched(), self.ranges(), strict=True)
        )
        self.clip = torch.stack(list(shares)).nan_to_num(1.0, 1.0, 1.0)

    @torch.no_grad()
    def learn_ranges(self) -> None:
        """Train the ranges, from those with which the weights have the least error."""
        self.ends = torch.stack(self._searched())
        self.gain = nn.Parameter(torch.ones_like(self.ends[0]))

    def renew_ranges(self) -> None:
        """Find the ranges again, after the weights have changed."""
        if self.clip is not None:
            self.clip_ranges()
        if self.gain is not None:
            self.learn_ranges()

    def _searched(self) -> tuple[Tensor, Tensor]:
        if self.is_symmetric:
            return searched(self.weight.float(), self.weight_bits)
        return ops.search_range(self.weight.float(), self.weight_bits, axis=0)

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


def quantize_layers(
    bits: Mapping[nn.Module, int], range: str = "minmax", symmetric_at: Collection[int] = ()
) -> int:
    """Turn every convolution and linear layer among some modules into its quantized form, in place.

    Parameters keep their identity and their names, so a float checkpoint still loads. Modules
    inside the given ones stay as they are: a leaf that tracing kept whole is in floating point.

    Args:
        bits: the modules, with the width of their weights.
        range: of each output channel, ``minmax``, ``mse`` for the one with the least error, or
            ``learned`` for one that is trained from there on.
        symmetric_at: widths at which grids are symmetric.

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
            layer.symmetric_at = symmetric_at
            layer.register_buffer("clip", None)
            layer.register_buffer("ends", None)
            layer.register_parameter("gain", None)
            if range == "mse":
                layer.clip_ranges()
            elif range == "learned":
                layer.learn_ranges()
            count += 1
    return count
