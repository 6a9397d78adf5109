"""The rebuilt published synthesis loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.baselines.published_synthesis import (
    PublishedSynthesis,
    PublishedSynthesisConfig,
    synthesize,
)

CONFIG = PublishedSynthesisConfig(
    image_shape=(3, 8, 8), learning_rate=0.1, gamma=2.0, augment_probability=0.0
)


@pytest.fixture
def teacher() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    ).eval()


LABELS = torch.tensor([0, 1, 2, 1])


def run(teacher, config, steps=5, layered=None):
    torch.manual_seed(1)
    synthesis = PublishedSynthesis(teacher, LABELS, config, layered)
    losses = [synthesis.iterate().item() for _ in range(steps)]
    return synthesis, losses


def test_the_loss_is_the_published_sum(teacher):
    synthesis, _ = run(teacher, CONFIG, steps=0)
    x = synthesis.images.detach()
    first = teacher[0](x)
    second = teacher[3](teacher[2](teacher[1](first)))
    matching = 0.0
    for seen, norm in ((first, teacher[1]), (second, teacher[4])):
        mean, variance = seen.mean((0, 2, 3)), seen.var((0, 2, 3), unbiased=False)
        matching += (mean - norm.running_mean).pow(2).mean() / 2
        matching += (variance - norm.running_var).pow(2).mean() / 2
    probability = teacher(x).softmax(1)[range(4), LABELS]
    focal = 0.1 * ((1 - probability) ** 2 * -probability.log()).mean()
    torch.testing.assert_close(synthesis.iterate(), (matching + focal).detach())


def test_costs_leave_the_images(teacher):
    published, losses = run(teacher, CONFIG)
    lean, lean_losses = run(teacher, CONFIG.lean())
    torch.testing.assert_close(lean.images, published.images)
    assert losses == pytest.approx(lean_losses)
    assert losses[-1] < losses[0]


def test_layered_statistics_leak_their_hooks(teacher):
    layered = [(torch.zeros(4), torch.ones(4)), (torch.zeros(6), torch.ones(6))]
    leaking, losses = run(teacher, CONFIG, layered=layered)
    assert len(leaking._leaked.collected) == 5 * 2
    clean, clean_losses = run(teacher, replace(CONFIG, leak_hooks=False), layered=layered)
    assert losses == pytest.approx(clean_losses)
    assert not hasattr(clean, "_leaked")


def test_synthesize_returns_finite_images_of_the_shape(teacher):
    config = replace(CONFIG, augment_probability=1.0)
    images = synthesize(teacher, LABELS, 3, config)
    assert images.shape == (4, 3, 8, 8)
    assert images.isfinite().all()


def test_the_teacher_is_left_alone(teacher):
    run(teacher, CONFIG)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher[1]._forward_hooks
