"""Quantized networks to deploy, made once: ranges from noise, weights as they come."""

from functools import lru_cache

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from synq_fast.engine.student import build_student, network_of
from synq_fast.models import Teacher
from synq_fast.quant import BitWidths, held_weights, observing
from synq_fast.quant.settings import Quantization
from tests.tiny import randomize_statistics


def noise(teacher: Teacher, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *teacher.input_shape, generator=generator)


def quantized(teacher: Teacher, bits: str, **recipe) -> fx.GraphModule:
    """A calibrated student; nothing of it is trained."""
    recipe = {"placement": "integer", "range": "minmax", **recipe}
    settings = Quantization(**recipe)
    graph = network_of(teacher.module, teacher.example(), frozenset(), settings)
    student = build_student(graph, BitWidths.parse(bits), settings).eval()
    with torch.no_grad(), observing(student), held_weights(student):
        student(noise(teacher, 16, seed=1))
    return student.requires_grad_(False)


class Residual(nn.Module):
    """Six layers: what large networks have, in little."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.first, self.norm1 = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.second, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16)
        self.short, self.norm3 = nn.Conv2d(8, 16, 1, 2), nn.BatchNorm2d(16)
        self.last, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x):
        x = functional.max_pool2d(torch.relu(self.norm(self.stem(x))), 3, 1, 1)
        y = functional.relu6(self.norm1(self.first(x)))
        y = torch.relu(self.norm2(self.second(y)) + self.norm3(self.short(x)))
        y = torch.relu(self.last(y))
        return self.head(functional.adaptive_avg_pool2d(y, 1).flatten(1))


class Bottleneck(nn.Module):
    """A block of 1 x 1 convolutions with a stride and a sum, as ResNet-50 has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.narrow = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 10, 1)
        self.middle, self.wide = nn.Conv2d(10, 10, 3, padding=1), nn.Conv2d(10, 24, 1)
        self.short, self.head = nn.Conv2d(24, 33, 1, stride=2), nn.Linear(33, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = torch.relu(self.middle(torch.relu(self.narrow(x))))
        x = functional.relu6(self.wide(y) + x)
        return self.head(torch.relu(self.short(x)).mean((2, 3)))


@lru_cache
def bottleneck() -> Teacher:
    torch.manual_seed(0)
    return Teacher(Bottleneck().eval(), "bottleneck", (3, 9, 11), (0.0,) * 3, (1.0,) * 3, 5)


@lru_cache
def residual() -> Teacher:
    torch.manual_seed(0)
    net = randomize_statistics(Residual()).eval().requires_grad_(False)
    return Teacher(net, "residual", (3, 16, 16), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 5)


@lru_cache
def student(bits: str, placement: str = "integer") -> fx.GraphModule:
    return quantized(residual(), bits, placement=placement)


@pytest.fixture
def runtime():
    pytest.importorskip("onnxscript", reason="the export extra is not installed")
    return pytest.importorskip("onnxruntime", reason="the export extra is not installed")
