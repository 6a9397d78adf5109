"""Modules of a frozen network: layers with integer codes, and quantizers as runtimes round."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from synq_fast.quant.full_precision import FullPrecision

_EXACT_IN_FLOAT32 = 2.0**24


class FrozenQuantizer(FullPrecision):
    """Puts an activation on the grid ``(code - zero_point) * scale``, codes from 0 to ``highest``.

    It divides by the scale and rounds half to even, as QuantizeLinear of ONNX does; NaN stays NaN.
    """

    scale: Tensor
    """float32, 0-d; (H, 1, 1) where each head of an attention has a grid."""
    zero_point: Tensor
    """int32 of the same shape, from 0 to ``highest``."""

    def __init__(self, scale: Tensor, zero_point: Tensor, bits: int) -> None:
        """Take scale and zero point (0-d, or (H,) of heads along dimension 1) of ``bits`` bits."""
        super().__init__()
        if scale.dim():
            scale, zero_point = scale.view(-1, 1, 1), zero_point.view(-1, 1, 1)
        self.bits = bits
        self.highest = 2**bits - 1
        self.register_buffer("scale", scale.float())
        self.register_buffer("zero_point", zero_point.to(torch.int32))

    @property
    def is_whole(self) -> bool:
        """Whether there is one grid for all heads."""
        return self.scale.dim() == 0

    def numbers(self, x: Tensor) -> Tensor:
        """The whole numbers ``code - zero_point`` of ``x``, in float32."""
        zero = self.zero_point.float()
        return torch.round(x / self.scale).clamp(-zero, self.highest - zero)

    def codes(self, x: Tensor) -> Tensor:
        """The codes of ``x``, uint8."""
        return (self.numbers(x) + self.zero_point).to(torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        """The nearest value of the grid, of the shape of ``x``."""
        return self.numbers(x) * self.scale

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        scales = ", ".join(f"{value:.6g}" for value in self.scale.flatten().tolist())
        zeros = ", ".join(map(str, self.zero_point.flatten().tolist()))
        return f"bits={self.bits}, scale={scales}, zero_point={zeros}"


class FrozenLayer(FullPrecision):
    """A layer whose weights are ``(stored + zero_point) * multiplier * scale``, each an integer.

    Where what it reads lies on one grid, the product is one of integers: exact, with a bias of
    32-bit integers in steps of ``input_scale * scale``. Elsewhere the weights multiply
    floating-point numbers.
    """

    stored: Tensor
    """(C, ...) int8, signed codes of ``bits`` bits."""
    zero_point: Tensor
    """(C,) int16; 0 for symmetric grids."""
    multiplier: Tensor
    """(C,) int8: lets the codes use int8's room, so that the steps of the bias are small; carries
    the sign of the BatchNorm's factor."""
    scale: Tensor
    """(C,) float32, positive: of the weights, the BatchNorm behind the layer in it."""
    bias: Tensor
    """(C,) int32; float32 where the input lies on no one grid."""
    input_scale: Tensor | None
    """0-d float32: of the grid that the input lies on; None: it lies on no one grid."""
    largest_input: int
    """A bound of the whole numbers that the input can be on its grid."""
    bits: int

    def __init__(
        self,
        bits: int,
        stored: Tensor,
        zero_point: Tensor,
        multiplier: Tensor,
        scale: Tensor,
        bias: Tensor,
        input_scale: Tensor | None,
        largest_input: int,
    ) -> None:
        """Take the parts, described at the fields."""
        super().__init__()
        self.bits = bits
        self.register_buffer("stored", stored.to(torch.int8))
        self.register_buffer("zero_point", zero_point.to(torch.int16))
        self.register_buffer("multiplier", multiplier.to(torch.int8))
        self.register_buffer("scale", scale.float())
        self.register_buffer("bias", bias)
        self.register_buffer("input_scale", input_scale)
        self.largest_input = largest_input
        self._ready: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own operation."""

    def codes(self) -> Tensor:
        """The weights in steps of ``scale``: (C, ...) int8 within -127 to 127."""
        of_channel = (-1, *(1,) * (self.stored.dim() - 1))
        shifted = self.stored.short() + self.zero_point.view(of_channel)
        return (shifted * self.multiplier.view(of_channel)).to(torch.int8)

    def weight(self) -> Tensor:
        """The weights, float32."""
        return self.codes().float() * self.scale.view(-1, *(1,) * (self.stored.dim() - 1))

    def float_bias(self) -> Tensor:
        """The bias, float32."""
        if self.input_scale is None:
            return self.bias
        return self.bias.float() * (self.input_scale * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's result, float32: of a sum of integers, rounded once to be scaled."""
        if self.input_scale is None:
            return self.product(x, self.weight(), self.bias)
        weight, bias = self._exact()
        numbers = torch.round(x / self.input_scale).to(weight.dtype)
        sums = self.product(numbers, weight, bias).float()
        return sums * self._of_channels(self.input_scale * self.scale)

    def prepare(self) -> None:
        """Choose the type of the sums now, so that a program can be made of the layer."""
        if self.input_scale is not None:
            self._exact()

    def _exact(self) -> tuple[Tensor, Tensor]:
        """Weights and bias in the smaller type in which every sum is exact."""
        if self._ready is None or self._ready[0].device != self.stored.device:
            exact = torch.float32 if self._reach() < _EXACT_IN_FLOAT32 else torch.float64
            self._ready = self.codes().to(exact), self.bias.to(exact)
        return self._ready

    def take(self, stored: Tensor) -> None:
        """Take other codes (C, ...) of the same shape."""
        self.stored.copy_(stored)
        self._ready = None

    def _reach(self) -> float:
        """A bound of the sums."""
        sums = self.codes().double().abs().flatten(1).sum(1) * self.largest_input
        return float((sums + self.bias.double().abs()).max()) if len(sums) else 0.0

    def _of_channels(self, values: Tensor) -> Tensor:
        """Values (C,) as they broadcast over a result."""
        return values

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._ready = None
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        where = "float" if self.input_scale is None else "integer"
        return f"{tuple(self.stored.shape)}, bits={self.bits}, {where} sums"


class FrozenConv2d(FrozenLayer):
    """A convolution of integers."""

    def __init__(self, convolution: nn.Conv2d, *parts: Any) -> None:
        """Take stride, padding and groups of a convolution."""
        super().__init__(*parts)
        self.stride, self.dilation = convolution.stride, convolution.dilation
        self.groups, self.padding = convolution.groups, convolution.padding
        self.padding_mode = convolution.padding_mode
        self._pads = tuple(convolution._reversed_padding_repeated_twice)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve (B, C_in, H, W)."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = functional.pad(x, self._pads, mode=self.padding_mode), (0, 0)
        return functional.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _of_channels(self, values: Tensor) -> Tensor:
        return values[:, None, None]


class FrozenLinear(FrozenLayer):
    """A linear layer of integers."""

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply (..., C_in)."""
        return functional.linear(x, weight, bias)
