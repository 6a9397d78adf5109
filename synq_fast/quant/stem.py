"""A frozen network's first convolution with a faster gradient of the image on CPUs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class FrozenStem(nn.Module):
    """A strided convolution of few channels whose weights no longer change.

    The gradient of its input is a convolution of the output's gradient with stride 1, one output
    channel per input channel and position within the stride, and a pixel shuffle (the sub-pixel
    convolution of Shi et al., CVPR 2016). CPU libraries run it two to three times faster than the
    transposed convolution with its few channels.
    """

    weight: Tensor
    bias: Tensor | None
    phases: Tensor

    def __init__(self, convolution: nn.Conv2d) -> None:
        """Take over a convolution that ``replaceable`` allows, as it is now."""
        super().__init__()
        self.stride, self.padding = int(convolution.stride[0]), int(convolution.padding[0])
        weight = convolution.weight.detach()
        self.register_buffer("weight", weight, persistent=False)
        bias = None if convolution.bias is None else convolution.bias.detach()
        self.register_buffer("bias", bias, persistent=False)
        phases = _phases(weight, self.stride, self.padding)
        phases = phases.contiguous(memory_format=torch.channels_last)
        self.register_buffer("phases", phases, persistent=False)

    @staticmethod
    def replaceable(module: nn.Module | None) -> bool:
        """Whether a module is a frozen, strided, square convolution of few channels on a CPU."""
        return (
            type(module) is nn.Conv2d
            and not module.weight.requires_grad
            and module.weight.device.type == "cpu"
            and module.in_channels <= 4
            and module.groups == 1
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
            and module.kernel_size[0] == module.kernel_size[1]
            and module.padding[0] == module.padding[1] < module.kernel_size[0]
            and module.stride[0] == module.stride[1] > 1
            and module.dilation == (1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        y: Tensor = _Stem.apply(x, self)
        return y


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stem: FrozenStem) -> Tensor:
        ctx.stem, ctx.size = stem, x.shape[2:]
        return functional.conv2d(x, stem.weight, stem.bias, stem.stride, stem.padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        stem, (height, width) = ctx.stem, ctx.size
        first, last = _reach(stem.weight.shape[2], stem.stride, stem.padding)
        rows, columns = (math.ceil(side / stem.stride) for side in (height, width))
        # As much on every side as the neediest one wants; the rest is cut off again.
        border = max(-first, last + rows - grad.shape[2], last + columns - grad.shape[3], 0)
        found = functional.conv2d(grad, stem.phases, None, 1, border)
        start = border + first
        found = found[:, :, start : start + rows, start : start + columns]
        return functional.pixel_shuffle(found, stem.stride)[:, :, :height, :width], None


def _reach(kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Which outputs an input position depends on, from the first to the last, by its cell."""
    return math.ceil((padding - kernel + 1) / stride), (stride - 1 + padding) // stride


def _phases(weight: Tensor, stride: int, padding: int) -> Tensor:
    """Weights (C_in * stride^2, C_out, taps, taps) of the stride-1 convolution of the gradient."""
    outputs, inputs, kernel, _ = weight.shape
    first, last = _reach(kernel, stride, padding)
    taps = range(first, last + 1)
    phases = weight.new_zeros(inputs, stride, stride, outputs, len(taps), len(taps))
    where = [
        (phase, tap - first, phase + padding - stride * tap)
        for phase in range(stride)
        for tap in taps
        if 0 <= phase + padding - stride * tap < kernel
    ]
    for row, row_tap, i in where:
        for column, column_tap, j in where:
            phases[:, row, column, :, row_tap, column_tap] = weight[:, :, i, j].T
    return phases.reshape(inputs * stride**2, outputs, len(taps), len(taps))
