"""One training step of a quantized vision transformer, in several forms."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torchvision.models import VisionTransformer

from synq_fast.engine.student import build_student
from synq_fast.graph import trace
from synq_fast.quant import BitWidths, fused, held_weights, observing
from synq_fast.quant.settings import Quantization

from . import harness
from .baselines.plain_transformer import plain_transformer

BATCH = 8
FORMS = ("ours", "PyTorch's quantizers", "float")


@cache
def _networks() -> tuple[fx.GraphModule, fx.GraphModule, Tensor, Tensor]:
    """The float network (DeiT-Tiny's form), its W4A4 student, images, and the float logits."""
    torch.manual_seed(0)
    network = VisionTransformer(224, 16, 12, 3, 192, 768).eval().to(harness.DEVICE)
    nn.init.normal_(network.heads.head.weight, std=0.02)
    images = torch.randn(BATCH, 3, 224, 224, device=harness.DEVICE)
    graph = trace(network, images[:2])
    learned = Quantization(range="minmax", weight_range="learned", learn_ranges=True)
    student = build_student(graph, BitWidths(4, 4), learned).eval()
    with torch.no_grad(), observing(student), held_weights(student):
        student(images[:4])
        logits = graph(images)
    return graph, student, images, logits


def step(form: str) -> Callable[[], Tensor]:
    """Forward and backward of the distance of the logits, to all parameters, in one of ``FORMS``.

    Args:
        form: ours, the same graph with PyTorch's learnable quantizers, or in floating point.
    """
    graph, student, images, logits = _networks()
    network = {
        "ours": lambda: fused(student),
        "PyTorch's quantizers": lambda: plain_transformer(student),
        "float": lambda: graph,
    }[form]()
    for parameter in network.parameters():
        parameter.requires_grad_(True)

    def run() -> Tensor:
        network.zero_grad()
        target = logits.softmax(1)
        loss = functional.cross_entropy(network(images), target)
        loss.backward()
        return loss.detach()

    return run
