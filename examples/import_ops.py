"""Quantization-aware training in a plain PyTorch loop, with the ops alone.

    pip install synq-fast scikit-learn
    python examples/import_ops.py --bits 3

A small network learns scikit-learn's 8x8 digits in floating point. A copy with quantized weights
and activations then learns from the first, on images some of which a filter has softened.
"""

import argparse
import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from synq_fast import ops


class QuantConv2d(nn.Conv2d):
    """A convolution whose weights are rounded to `2^bits` levels for each output channel."""

    bits: int | None = None  # floating point

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `(B, C, H, W)`; gradients reach the weights straight through the rounding."""
        weight = self.weight
        if self.bits is not None:
            weight, _, _ = ops.fake_quantize_dynamic(weight, self.bits, axis=0)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class QuantReLU(nn.Module):
    """ReLU and, with bits, rounding over the moving average of the range seen in training."""

    def __init__(self) -> None:
        super().__init__()
        self.bits: int | None = None
        for name, dtype in (("low", torch.float32), ("high", torch.float32), ("step", torch.int64)):
            self.register_buffer(name, torch.zeros((), dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape of `x`."""
        x = x.relu()
        if self.bits is None:
            return x
        if self.training:
            ops.update_range(x, self.low, self.high, self.step)
        low, high = ops.read_range(self.low, self.high, self.step)
        return ops.fake_quantize(x, low, high, self.bits, ste="clip")


def network() -> nn.Sequential:
    """Three convolutions for `(B, 1, 8, 8)` images of ten classes."""
    return nn.Sequential(
        *(QuantConv2d(1, 8, 3, padding=1), QuantReLU()),
        *(QuantConv2d(8, 16, 3, stride=2, padding=1), QuantReLU()),
        *(QuantConv2d(16, 16, 3, padding=1), QuantReLU()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers in percent."""
    with torch.no_grad():
        return 100 * (model.eval()(images).argmax(1) == labels).float().mean().item()


def train(model: nn.Module, images: Tensor, labels: Tensor, rate: float, teacher=None) -> None:
    """Train on the labels, or on a teacher and the labels that it finds easy."""
    optimizer = torch.optim.Adam(model.train().parameters(), rate)
    for _ in range(12):
        for batch in torch.randperm(len(images)).split(64):
            x, y = images[batch], labels[batch]
            if teacher is None:
                loss = F.cross_entropy(model(x), y)
            else:
                # Half of the images lose what varies faster than three cycles over their width.
                x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, ops.low_pass(x, 3.0), x)
                wanted = teacher(x).detach()
                kl, ce, _ = ops.distillation_loss(model(x), wanted, y, temperature=4.0, alpha=1.0)
                loss = kl + ce
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main() -> None:
    """Train both networks and print their accuracies."""
    parser = argparse.ArgumentParser(description="Quantization-aware training with the ops.")
    parser.add_argument("--bits", type=int, default=2, help="of weights and activations")
    bits = parser.parse_args().bits
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = (torch.from_numpy(array) for array in (digits.images, digits.target))
    images = images.float()[:, None] / 8 - 1
    order = torch.randperm(len(images))
    seen, unseen = [(images[part], labels[part]) for part in (order[:1437], order[1437:])]

    teacher = network()
    train(teacher, *seen, 3e-3)
    print(f"float32 network: {accuracy(teacher, *unseen):.1f} % of {len(unseen[0])} unseen digits")

    student = copy.deepcopy(teacher)
    for module in student.modules():
        if isinstance(module, QuantConv2d | QuantReLU):
            module.bits = bits
    student.train()(seen[0])
    print(f"{bits} bits, ranges from one pass: {accuracy(student, *unseen):.1f} %")

    train(student, *seen, 1e-3, teacher.eval())
    print(f"{bits} bits after training with its teacher: {accuracy(student, *unseen):.1f} %")
    rounded, _, _ = ops.fake_quantize_dynamic(student[2].weight, bits, axis=0)
    print(f"at most {max(len(w.unique()) for w in rounded)} different weights in a channel")


if __name__ == "__main__":
    main()
