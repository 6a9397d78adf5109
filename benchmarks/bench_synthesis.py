"""One synthesis iteration of ResNet-20 at 32 pixels: the engine against the published loop."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks import harness
from benchmarks.baselines.published_synthesis import PublishedSynthesis, PublishedSynthesisConfig
from benchmarks.engine import engine_synthesis
from synq_fast.models.resnet_cifar import cifar_resnet20

BATCH = 256


def bench_synthesis(compare: Callable[..., harness.Comparison]) -> None:
    """A published batch of 256 images, without the augmentation that CIFAR does not have."""
    teacher = cifar_resnet20().to(harness.DEVICE).eval()
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (BATCH,), generator=generator).to(harness.DEVICE)
    # An exponent of 2 has a finite gradient everywhere, so rounds cannot differ through NaN.
    config = PublishedSynthesisConfig.cifar(gamma=2.0)
    ours = engine_synthesis(teacher, labels)
    columns: dict[str, Callable[[], object]] = {} if ours is None else {"ours": ours}
    columns["published"] = PublishedSynthesis(teacher, labels, config).iterate
    columns["published, switches off"] = PublishedSynthesis(teacher, labels, config.lean()).iterate
    compare(
        f"resnet20 32px batch {BATCH}",
        columns,
        ours="ours" if ours else None,
        omitted={} if ours else {"ours": "the engine has no synthesis"},
        rounds=7,
    )
