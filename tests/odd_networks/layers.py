"""Layers that are more, or something else, than the class they derive from."""

import torch
from torch import nn
from torch.nn import functional


class NormWithActivation(nn.BatchNorm2d):
    def forward(self, x):
        return functional.leaky_relu(super().forward(x), 0.2)


class NormTimesTwo(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class NormOfOwnArithmetic(nn.BatchNorm2d):
    def forward(self, x):
        scale = self.weight / (self.running_var + self.eps)
        return x * scale[:, None, None] + self.bias[:, None, None]


class ShiftedRelu(nn.ReLU):
    def forward(self, x):
        return super().forward(x) - 0.5


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (var + 1e-5).sqrt()
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class SamePaddedConv(nn.Conv2d):
    """Padding from the input's size, as in timm's Conv2dSame."""

    def forward(self, x):
        rows, stride, kernel = x.shape[-2], self.stride[0], self.kernel_size[0]
        short = max((-(-rows // stride) - 1) * stride + kernel - rows, 0)
        if short > 0:
            x = functional.pad(x, [short // 2, short - short // 2] * 2)
        return functional.conv2d(x, self.weight, self.bias, self.stride, 0)


class InputDependentConv(nn.Conv2d):
    """Weights that follow the image cannot be quantized."""

    def forward(self, x):
        return functional.conv2d(x, self.weight * x.mean().sigmoid(), self.bias, padding=1)


class ScaledLinear(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight * 0.5, self.bias)
