"""One synthesis iteration of ResNet-20 at 32 pixels: the engine against the published loop."""

from __future__ import annotations

from collections.abc import Callable

import torch

from synq_fast.models.resnet_cifar import cifar_resnet20

from . import harness
from .baselines.published_synthesis import PublishedSynthesis, PublishedSynthesisConfig
from .engine import engine_synthesis

BATCH = 256


def bench_synthesis(compare: Callable[..., harness.Comparison]) -> None:
    """A published batch of 256 images, without the augmentation that CIFAR does not have."""
    teacher = cifar_resnet20().to(harness.DEVICE).eval()
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (BATCH,), generator=generator).to(harness.DEVICE)
    # An exponent of 2 has a finite gradient everywhere, so rounds cannot differ through NaN.
    config = PublishedSynthesisConfig.cifar(gamma=2.0)
    # The baselines copy the teacher before the engine changes its memory format.
    published = PublishedSynthesis(teacher, labels, config)
    lean = PublishedSynthesis(teacher, labels, config.lean())
    columns: dict[str, Callable[[], object]] = {
        "ours": engine_synthesis(teacher, labels),
        "published": published.iterate,
        "published, switches off": lean.iterate,
    }
    compare(
        f"resnet20 32px batch {BATCH}",
        columns,
        ours="ours",
        clock="wall",
        rounds=7,
    )
