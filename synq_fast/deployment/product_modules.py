"""Parts of a network in int8 codes: products on a GPU's tensor cores, and plain ones elsewhere."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from synq_fast.deployment.frozen import FrozenConv2d, FrozenLayer, FrozenLinear, FrozenQuantizer
from synq_fast.ops._backend import INTERPRETED
from synq_fast.quant.full_precision import FullPrecision
from synq_fast.reference import _int8_product as plain
from synq_fast.reference._int8_product import Grid

_LARGEST_SUM = 2**31 - 1
_MOST_OF_CODES = 256
"""Beyond the magnitude of a code and of what codes leave out together."""


def grid_of(quantizer: FrozenQuantizer) -> Grid:
    """The grid of a quantizer that has one for all heads."""
    return Grid.of(float(quantizer.scale), int(quantizer.zero_point), quantizer.highest)


class CodeQuantizer(FullPrecision):
    """Codes (int8) of a value in floating point."""

    def __init__(self, quantizer: FrozenQuantizer) -> None:
        """Take over a grid."""
        super().__init__()
        self.grid = grid_of(quantizer)

    def forward(self, x: Tensor) -> Tensor:
        """Codes of the shape of ``x``."""
        if not _has_kernels(x):
            return plain.int8_codes(x, self.grid)
        codes: Tensor = _kernels().int8_codes(x, self.grid)
        return codes


class CodeNumbers(FullPrecision):
    """The numbers that codes stand for."""

    def __init__(self, quantizer: FrozenQuantizer) -> None:
        """Take over a grid."""
        super().__init__()
        self.grid = grid_of(quantizer)

    def forward(self, codes: Tensor) -> Tensor:
        """Numbers of the shape of ``codes``, float32."""
        return plain.int8_numbers(codes, self.grid)


class ProductLayer(FullPrecision):
    """A linear layer or 1 x 1 convolution, what it is added to, a ReLU and a quantizer."""

    weight: Tensor
    """(N, K) int8."""
    bias: Tensor
    """(N,) int32, in steps of ``multiplier``; holds what the codes of the input leave out."""
    multiplier: Tensor
    """(N,) float32."""

    def __init__(
        self,
        layer: FrozenLayer,
        source: FrozenQuantizer,
        *,
        output: FrozenQuantizer | None,
        bound: float | None,
        added: FrozenQuantizer | None = None,
    ) -> None:
        """Take over a layer.

        Args:
            layer: one that ``fits_product``.
            source: the grid of its input.
            output: the grid that its result is put on; None: floating point.
            bound: where the ReLU before that grid ends; None: there is none.
            added: the grid of what is added to its result.
        """
        super().__init__()
        assert layer.input_scale is not None
        self.stride = layer.stride if isinstance(layer, FrozenConv2d) else None
        weight = layer.codes().flatten(1).contiguous()
        left_out = weight.long().sum(1) * grid_of(source).offset
        self.register_buffer("weight", weight)
        self.register_buffer("bias", (layer.bias + left_out).to(torch.int32))
        self.register_buffer("multiplier", layer.input_scale * layer.scale)
        self.grid = None if output is None else grid_of(output).rectified(bound)
        self.added_grid = None if added is None else grid_of(added)

    def forward(self, codes: Tensor, added: Tensor | None = None) -> Tensor:
        """The result for codes (int8), (..., K) or (B, K, H, W), as codes or float32."""
        if self.stride is None:
            rows = codes.reshape(-1, codes.shape[-1])
            others = None if added is None else added.reshape(-1, added.shape[-1])
            return self._product(rows, others).view(*codes.shape[:-1], len(self.weight))
        down, right = self.stride
        # Channels innermost: a view, without strides.
        pixels = codes[:, :, ::down, ::right].permute(0, 2, 3, 1)
        others = None if added is None else added.permute(0, 2, 3, 1).flatten(0, 2)
        y = self._product(pixels.flatten(0, 2), others)
        return y.view(*pixels.shape[:3], len(self.weight)).permute(0, 3, 1, 2)

    def _product(self, rows: Tensor, added: Tensor | None) -> Tensor:
        given = rows, self.weight, self.bias, self.multiplier
        if not _has_kernels(rows):
            return plain.int8_product(
                *given, grid=self.grid, added=added, added_grid=self.added_grid
            )
        y: Tensor = _kernels().int8_product(
            *given, self.grid, added, self.added_grid, torch.float32
        )
        return y

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{tuple(self.weight.shape)}, {'float32' if self.grid is None else 'codes'}"


def fits_product(layer: FrozenLayer) -> bool:
    """Whether a layer is one product of matrices whose sums fit 32 bits."""
    if isinstance(layer, FrozenConv2d):
        if layer.stored.shape[2:] != (1, 1) or layer.groups != 1 or any(layer._pads):
            return False
    elif not isinstance(layer, FrozenLinear):
        return False
    largest = layer.codes().short().abs().flatten(1).sum(1) * _MOST_OF_CODES
    return bool((largest + layer.bias.long().abs() <= _LARGEST_SUM).all())


def _kernels() -> Any:
    # As late as it can be: they need Triton.
    return importlib.import_module("synq_fast.kernels")


def _has_kernels(x: Tensor) -> bool:
    return x.is_cuda or INTERPRETED
