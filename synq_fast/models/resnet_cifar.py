"""Residual networks for small images (He et al., "Deep Residual Learning", 2016, section 4.2).

Every activation is its own call of `F.relu` and nothing works in place, so that `torch.fx` gives
each call site its own node and a tapped feature map keeps its value.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from synq_fast.errors import ModelError

WIDTHS = (16, 32, 64)


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


class PaddingShortcut(nn.Module):
    """Shortcut option A: every second pixel, new channels filled with zeros on both sides."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, ceil(H/2), ceil(W/2))."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut, ReLU after the sum."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = PaddingShortcut(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H/stride, W/stride)."""
        out: Tensor = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ProjectionBlock(nn.Module):
    """Two 3x3 convolutions and a 1x1 projection shortcut (option B); no ReLU after the sum."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H/stride, W/stride), without a final activation."""
        out: Tensor = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return out


def _stage(
    block: type[BasicBlock] | type[ProjectionBlock],
    in_channels: int,
    out_channels: int,
    blocks: int,
    stride: int,
) -> nn.Sequential:
    first = block(in_channels, out_channels, stride)
    rest = [block(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


class CifarResNet(nn.Module):
    """ResNet of depth 6n+2 with stages of 16, 32 and 64 channels and shortcut option A.

    Args:
        depth: number of weighted layers, 6n+2 with n >= 1 (8, 14, 20, 32, 44, 56, 110...).
        num_classes: number of outputs.
        in_channels: channels of the image.

    Raises:
        ModelError: `depth` is not of the form 6n+2.
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ModelError(
                f"a CIFAR ResNet has depth 6n+2 with n >= 1 (8, 14, 20, 32, 56...), got {depth}"
            )
        self.conv1 = _conv3x3(in_channels, WIDTHS[0])
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(BasicBlock, WIDTHS[0], WIDTHS[0], blocks, 1)
        self.layer2 = _stage(BasicBlock, WIDTHS[0], WIDTHS[1], blocks, 2)
        self.layer3 = _stage(BasicBlock, WIDTHS[1], WIDTHS[2], blocks, 2)
        self.linear = nn.Linear(WIDTHS[2], num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to logits (B, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class CifarResNetKd(nn.Module):
    """ResNet-20 with a stem of 64 channels, option B shortcuts and one ReLU after each stage.

    Takes 32x32 images: the head pools 4x4 windows and its linear layer sees 2x2x64 values.
    The variant is karanchahal/distiller's.
    """

    def __init__(self, num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, 64)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(ProjectionBlock, 64, WIDTHS[0], 3, 1)
        self.layer2 = _stage(ProjectionBlock, WIDTHS[0], WIDTHS[1], 3, 2)
        self.layer3 = _stage(ProjectionBlock, WIDTHS[1], WIDTHS[2], 3, 2)
        self.linear = nn.Linear(WIDTHS[2] * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, in_channels, 32, 32) to logits (B, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.layer1(x))
        x = F.relu(self.layer2(x))
        x = F.relu(self.layer3(x))
        logits: Tensor = self.linear(F.avg_pool2d(x, 4).flatten(1))
        return logits


def cifar_resnet(depth: int, num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Build an untrained CIFAR ResNet of any depth 6n+2."""
    return CifarResNet(depth, num_classes, in_channels)


def cifar_resnet20(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """Build an untrained CIFAR ResNet-20 (option A shortcuts)."""
    return CifarResNet(20, num_classes, in_channels)


def cifar_resnet20_kd(num_classes: int = 100) -> CifarResNetKd:
    """Build an untrained ResNet-20 variant with projection shortcuts (see `CifarResNetKd`)."""
    return CifarResNetKd(num_classes)


def digits_resnet20() -> CifarResNet:
    """Build the untrained network of the embedded digits teacher: (B, 1, 16, 16) to (B, 10)."""
    return CifarResNet(20, num_classes=10, in_channels=1)
