"""Soft rounding: each weight chooses between the two codes next to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synq_fast import ops
from synq_fast.quant.layers import WeightQuantized

# The choice between code and code + 1 is clamp(1.2 sigmoid(v) - 0.1, 0, 1).
_STRETCH, _SHIFT = 1.2, 0.1
_FIRMLY_DOWN = -20.0


class SoftRounding:
    """A layer's weight as ``floor(w / step) + choice`` steps, the choice and the steps trained.

    The floor is that of the step at the start, so that a step that changes moves all weights of
    its channel alike (Genie-M, arXiv 2212.04780). The first choices give the float weight.
    """

    def __init__(self, layer: WeightQuantized, exponent: Tensor) -> None:
        """Take over the layer's weight; ``exponent`` (0-d) is read at each call."""
        self.layer, self.exponent = layer, exponent
        self.bits = layer.weight_bits
        grid = layer.grid()
        self.low, self.high = grid.low, grid.high
        shape = (-1, *(1 for _ in layer.weight.shape[1:]))
        weight = layer.weight.detach().float()
        places = weight * grid.scale.view(shape) - grid.zero_point.view(shape)
        base = places.floor().clamp(self.low, self.high)
        share = (places - base).clamp(0, 1 - 1e-4)
        choice = ((share + _SHIFT) / _STRETCH).logit()
        self.v = nn.Parameter(torch.where(places < self.low, _FIRMLY_DOWN, choice))
        self.base = base.to(torch.int8)
        self.penalty = torch.zeros((), dtype=torch.float32, device=base.device)

    def __call__(self) -> Tensor:
        """The weight with the choices as they are; keeps the ``penalty`` on undecided ones."""
        scale, zero_point, *_ = self.layer.trained_grid()
        weight, self.penalty = ops.soft_round(
            self.v, self.base, scale, zero_point, self.bits, self.exponent, axis=0
        )
        return weight

    @torch.no_grad()
    def harden(self) -> None:
        """Give the layer the weights of the choices that are made."""
        layer = self.layer
        scale, zero_point, *_ = layer.grid()
        shape = (-1, *(1 for _ in layer.weight.shape[1:]))
        codes = (self.base.float() + (self.v >= 0)).clamp(self.low, self.high)
        layer.weight.copy_((codes + zero_point.view(shape)) / scale.view(shape))
