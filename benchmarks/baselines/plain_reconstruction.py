"""Reconstruction of a residual block as plain eager operations: the same mathematics.

A reader of AdaRound, LSQ and QDrop would write a block's step this way: the quantizers from ATen's
elementwise operations, evaluation BatchNorms behind their convolutions, and PyTorch's Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Draw = Callable[[Tensor, float], Tensor]
"""Where the elements of a tensor are kept, each with a probability."""


def at_random(x: Tensor, keep: float) -> Tensor:
    """By the device's generator."""
    return torch.rand_like(x) < keep


def rounded(x: Tensor) -> Tensor:
    """``x`` rounded half to even; the gradient passes."""
    return x + (x.round() - x).detach()


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """``x``; its gradient times a factor."""
    return factor * x + (x - factor * x).detach()


@dataclass
class PlainGrid:
    """A quantizer's grid, whose steps grow with a trained gain."""

    scale: Tensor
    """Steps per unit at gain 1; broadcasts over what is quantized."""
    zero_point: Tensor
    bits: int
    gain: nn.Parameter
    """0-d, or (C,)."""
    gradient_scale: float

    @property
    def half(self) -> int:
        """Codes on either side of zero."""
        return int(2 ** (self.bits - 1))

    def trained_scale(self) -> Tensor:
        """Steps per unit, a function of the gain."""
        return self.scale / self.gain.clamp_min(1e-3).view(self.scale.shape)

    def __call__(self, x: Tensor) -> Tensor:
        """The values of the grid nearest to ``x`` (LSQ)."""
        scale = scaled_gradient(self.trained_scale(), self.gradient_scale)
        codes = rounded(scale * x - self.zero_point).clamp(-self.half, self.half - 1)
        return (codes + self.zero_point) / scale


@dataclass
class PlainLayer:
    """A 3x3 convolution with a quantized weight, and the evaluation BatchNorm behind it."""

    grid: PlainGrid
    norm: nn.BatchNorm2d
    trained: nn.Parameter
    """The weight, straight through its rounding, or the variable of its soft choice (AdaRound)."""
    base: Tensor | None
    """The codes below the weights, of the soft choice."""
    exponent: Tensor

    def quantized(self) -> tuple[Tensor, Tensor]:
        """The weight, and how undecided its rounding is."""
        grid = self.grid
        if self.base is None:
            return grid(self.trained), self.trained.new_zeros(())
        choice = (1.2 * torch.sigmoid(self.trained) - 0.1).clamp(0, 1)
        codes = (self.base + choice).clamp(-grid.half, grid.half - 1)
        penalty = (1 - (2 * choice - 1).abs().pow(self.exponent)).sum()
        return (codes + grid.zero_point) / grid.trained_scale(), penalty

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve (B, C, H, W)."""
        weight, penalty = self.quantized()
        return self.norm(functional.conv2d(x, weight, padding=1)), penalty


class PlainReconstruction:
    """Steps on one basic block of a residual network."""

    def __init__(
        self,
        layers: Sequence[PlainLayer],
        grids: Sequence[PlainGrid],
        values: Sequence[Tensor],
        parameters: Sequence[nn.Parameter],
        rate: float,
        *,
        batch_size: int,
        keep: float,
        mix: float,
        penalized: float,
        memory_format: torch.memory_format,
    ) -> None:
        """Prepare.

        Args:
            layers: both convolutions.
            grids: of the block's input, and of what the second convolution reads.
            values: what the block reads in the quantized and in the float network, and what it
                should give, (N, C, H, W) each.
            parameters: what Adam trains.
            rate: how fast.
            batch_size: images of a step.
            keep: share of the activations that is quantized (QDrop).
            mix: share of the input that comes from the quantized network.
            penalized: factor on how undecided the roundings are.
            memory_format: of the values.
        """
        self.layers, self.grids, self.parameters = layers, grids, list(parameters)
        self.batch_size, self.keep, self.mix, self.penalized = batch_size, keep, mix, penalized
        self.memory_format = memory_format
        self.values = [v.contiguous(memory_format=memory_format) for v in values]
        self.draws: Sequence[Draw] = (at_random,) * 3
        """Of the mixture, and of both grids."""
        self.optimizer = torch.optim.Adam(self.parameters, lr=rate)
        self.order = torch.randperm(len(values[0]), device="cpu")
        self.done = 0

    def advance(self) -> Tensor:
        """One step on the next images; returns the terms."""
        start = self.done * self.batch_size % len(self.order)
        self.done += 1
        chosen = self.order[start : start + self.batch_size]
        return self.step(*(v[chosen.to(v.device)] for v in self.values))

    def step(self, quantized: Tensor, given: Tensor, target: Tensor) -> Tensor:
        """One step on values of some images, (B, C, H, W) each."""
        self.optimizer.zero_grad()
        first, *others = self.draws
        x = torch.where(first(quantized, self.mix), quantized, given)
        y, undecided = self.block(x, others)
        local = functional.mse_loss(y, target) * y.shape[1]
        rounding = self.penalized * undecided
        (local + rounding).backward()
        self.optimizer.step()
        return torch.stack([local.detach(), rounding.detach()])

    def block(self, x: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """The block's value, and how undecided its roundings are."""
        x = torch.where(draws[0](x, self.keep), self.grids[0](x), x)
        y, one = self.layers[0](x)
        y = functional.relu(y)
        y = torch.where(draws[1](y, self.keep), self.grids[1](y), y)
        y, other = self.layers[1](y)
        return functional.relu(y + x), one + other
