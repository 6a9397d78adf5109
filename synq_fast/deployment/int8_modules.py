"""Parts of a network in PyTorch's own integers: codes, and oneDNN's products of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from synq_fast.deployment.frozen import FrozenConv2d, FrozenLayer, FrozenLinear, FrozenQuantizer

_HIGHEST = 255


class Int8Quantizer(nn.Module):
    """Codes (uint8) of a value in floating point."""

    def __init__(self, quantizer: FrozenQuantizer) -> None:
        """Take over a grid."""
        super().__init__()
        self.scale, self.zero_point = float(quantizer.scale), int(quantizer.zero_point)
        self.highest = quantizer.highest

    def forward(self, x: Tensor) -> Tensor:
        """Codes of the shape of ``x``."""
        codes = torch.quantize_per_tensor(x, self.scale, self.zero_point, torch.quint8).int_repr()
        return codes if self.highest == _HIGHEST else codes.clamp_(max=self.highest)


class Dequantizer(nn.Module):
    """The numbers that codes stand for."""

    def __init__(self, quantizer: FrozenQuantizer) -> None:
        """Take over a grid."""
        super().__init__()
        self.scale, self.zero_point = float(quantizer.scale), int(quantizer.zero_point)

    def forward(self, codes: Tensor) -> Tensor:
        """Numbers of the shape of ``codes``, float32."""
        return codes.float().sub_(self.zero_point).mul_(self.scale)


class Int8MaxPool(nn.Module):
    """Maximum pooling of codes, which PyTorch has for its quantized tensors alone."""

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> None:
        """Take the arguments of ``functional.max_pool2d``."""
        super().__init__()
        self.window = kernel_size, stride or kernel_size, padding, dilation, ceil_mode

    def forward(self, codes: Tensor) -> Tensor:
        """Pool (B, C, H, W) uint8."""
        quantized = torch._make_per_tensor_quantized_tensor(codes, 1.0, 0)
        pooled: Tensor = torch.quantized_max_pool2d(quantized, *self.window).int_repr()
        return pooled


class Int8Layer(nn.Module):
    """A layer, what it is added to, a ReLU and a quantizer in one product of oneDNN."""

    packed: Tensor
    scale: Tensor
    zeros: Tensor
    bias: Tensor

    def __init__(
        self,
        layer: FrozenLayer,
        source: FrozenQuantizer,
        shape: torch.Size | None,
        *,
        output: FrozenQuantizer | None,
        bound: float | None,
        added: FrozenQuantizer | None = None,
        added_is_read_later: bool = False,
    ) -> None:
        """Pack a layer.

        Args:
            layer: with integer sums.
            source: the grid of its input.
            shape: of its input, for two images.
            output: the grid that its result is put on; None: floating point.
            bound: where the ReLU behind it ends; None: there is none.
            added: the grid of what is added to its result.
            added_is_read_later: keep it.
        """
        super().__init__()
        self.input_scale, self.input_zero = float(source.scale), int(source.zero_point)
        self.output = output
        self.added = None if added is None else (float(added.scale), int(added.zero_point))
        self.copies = added_is_read_later
        codes, scale = layer.codes().contiguous(), layer.scale.clone()
        self.register_buffer("scale", scale)
        self.register_buffer("zeros", torch.zeros(len(scale), dtype=torch.int64))
        self.register_buffer("bias", layer.float_bias().clone())
        self.window: tuple[Any, ...] | None = None
        given = None if shape is None else list(shape)
        if isinstance(layer, FrozenConv2d):
            self.window = (
                list(layer.stride),
                _pads(layer),
                list(layer.dilation),
                layer.groups,
            )
            packed = torch.ops.onednn.qconv_prepack(
                codes, scale, self.input_scale, self.input_zero, *self.window, given
            )
        else:
            packed = torch.ops.onednn.qlinear_prepack(codes, given)
        # In oneDNN's own layout, which cannot be saved.
        self.register_buffer("packed", packed, persistent=False)
        self.post, self.ends = _post(output, bound, added is not None)
        self.result_type = torch.float32 if output is None else torch.uint8
        self.grid = (1.0, 0) if output is None else (float(output.scale), int(output.zero_point))
        # A sum takes a ReLU and no other end behind it.
        self.clips = added is not None and output is not None and output.highest < _HIGHEST

    def forward(self, codes: Tensor, added: Tensor | None = None) -> Tensor:
        """The result for codes (uint8), as codes or in floating point."""
        given = (codes, self.input_scale, self.input_zero, self.packed, self.scale, self.zeros)
        if self.window is None:
            y: Tensor = torch.ops.onednn.qlinear_pointwise(
                *given, self.bias, *self.grid, self.result_type, self.post, self.ends, ""
            )
            return y
        layout = torch.channels_last
        given = (codes.contiguous(memory_format=layout), *given[1:])
        if added is None or self.added is None:
            y = torch.ops.onednn.qconv_pointwise(
                *given,
                self.bias,
                *self.window,
                *self.grid,
                self.result_type,
                self.post,
                self.ends,
                "",
            )
            return y
        if self.copies or not added.is_contiguous(memory_format=layout):
            added = added.clone(memory_format=layout)
        y = torch.ops.onednn.qconv2d_pointwise.binary(
            *given,
            added,
            self.bias,
            *self.window,
            *self.grid,
            self.result_type,
            *self.added,
            "sum",
            1.0,
            self.post,
            self.ends,
            "",
        )
        if self.clips:
            assert self.output is not None
            y.clamp_(max=self.output.highest)
        return y


def _pads(layer: FrozenConv2d) -> list[int]:
    """Rows and columns of zeros on each side."""
    pads = layer._pads  # left, right, top, bottom
    return [pads[2], pads[0]]


def _post(
    output: FrozenQuantizer | None, bound: float | None, is_sum: bool
) -> tuple[str, list[float]]:
    """OneDNN's name for what comes between product and rounding, with its ends."""
    if output is None:
        if bound is None:
            return "none", []
        return ("relu", []) if bound == math.inf else ("hardtanh", [0.0, bound])
    scale, zero = float(output.scale), int(output.zero_point)
    low, high = -zero * scale, (output.highest - zero) * scale
    if is_sum:
        # Codes end at 0 by themselves.
        return ("relu", []) if bound is not None and zero > 0 else ("none", [])
    if bound is not None:
        low, high = max(low, 0.0), min(high, bound)
    if output.highest == _HIGHEST and (bound is None or zero == 0) and high != bound:
        return "none", []
    return "hardtanh", [low, high]


def fits_onednn(layer: FrozenLayer) -> bool:
    """Whether oneDNN's convolution is the layer's."""
    if isinstance(layer, FrozenConv2d):
        pads = layer._pads
        return layer.padding_mode == "zeros" and pads[0] == pads[1] and pads[2] == pads[3]
    return isinstance(layer, FrozenLinear)
