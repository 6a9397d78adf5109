"""One SynQ fine-tuning step of ResNet-20 at 32 pixels: the engine against the published step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from synq_fast.models.resnet_cifar import cifar_resnet20

from . import harness
from .baselines.published_quantizer import activation_quantizers
from .baselines.published_step import (
    PublishedStep,
    PublishedStepConfig,
    build_published_student,
)
from .engine import engine_step

BATCH, WEIGHT_BITS, ACTIVATION_BITS = 16, 4, 4
# A rate that moves nothing keeps the work of all rounds equal.
STILL = 1e-12


def _published(
    teacher: nn.Module, images: torch.Tensor, config: PublishedStepConfig
) -> PublishedStep:
    student = build_published_student(teacher, WEIGHT_BITS, ACTIVATION_BITS)
    step = PublishedStep(teacher, student, config)
    step.observe_ranges(images)
    return step


def bench_step(compare: Callable[..., harness.Comparison]) -> None:
    """Batch 16, four bits, augmentation included; hooks do not accumulate while it is timed."""
    generator = torch.Generator().manual_seed(0)
    teacher = cifar_resnet20().to(harness.DEVICE).eval()
    images = torch.randn(BATCH, 3, 32, 32, generator=generator).to(harness.DEVICE)
    labels = torch.randint(0, 10, (BATCH,), generator=generator).to(harness.DEVICE)

    first = PublishedStepConfig(leak_hooks=False, learning_rate=STILL)
    published = _published(teacher, images, first)
    late = _published(
        teacher,
        images,
        PublishedStepConfig(leak_hooks=False, standing_hooks=1000, learning_rate=STILL),
    )
    lean = _published(
        teacher,
        images,
        PublishedStepConfig.lean(learning_rate=STILL, direction_through_teacher=False),
    )
    ranges = {
        name: (quantizer.range_min.item(), quantizer.range_max.item())
        for name, quantizer in activation_quantizers(published.student).items()
    }
    ours = engine_step(
        teacher,
        images,
        labels,
        ranges,
        weight_bits=WEIGHT_BITS,
        activation_bits=ACTIVATION_BITS,
    )
    columns: dict[str, Callable[[], object]] = {"ours": ours}
    columns["published, first step"] = partial(published.step, images, labels)
    columns["published, 1000th step"] = partial(late.step, images, labels)
    columns["published, switches off"] = partial(lean.step, images, labels)
    compare(
        f"resnet20 32px batch {BATCH} w{WEIGHT_BITS}a{ACTIVATION_BITS}",
        columns,
        ours="ours",
        clock="wall",
        rounds=9,
    )
