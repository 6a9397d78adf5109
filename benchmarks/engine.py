"""The engine's side of the step and synthesis comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx, nn

from synq_fast.finetune.batches import BatchSource
from synq_fast.finetune.step import SynqStep
from synq_fast.finetune.trainer import Trainer
from synq_fast.quant import BitWidths, find_tap_points, trace
from synq_fast.recipes.schema import (
    Cam,
    Distillation,
    Features,
    Filter,
    Finetune,
    Perturbation,
    Quantization,
)
from synq_fast.saved_model import build_student
from synq_fast.synthesis.bank import ImageBank
from synq_fast.synthesis.losses import BatchNormTeacher, focal_class_loss

from .baselines.published_config import LossConstants


def finetune_recipe(losses: LossConstants, *, through_teacher: bool, **changes: object) -> Finetune:
    """The published constants as a recipe section."""
    section = {
        "distillation": Distillation(
            losses.alpha, losses.temperature, losses.ce_weight, True, losses.difficulty_threshold
        ),
        "features": Features(losses.alignment_weight, in_perturbed_pass=False),
        "perturbation": Perturbation(losses.perturbed_weight, losses.epsilon, through_teacher),
        "cam": Cam(losses.cam_weight),
    }
    # The changes' names and types are the caller's; the recipe's own tests check them.
    return Finetune(**{**section, **changes})  # type: ignore[arg-type]


def calibrated_student(
    graph: fx.GraphModule, ranges: Mapping[str, tuple[float, float]], bits: BitWidths
) -> fx.GraphModule:
    """A student with given ranges, by the graph node of each ReLU."""
    student = build_student(graph, bits, Quantization()).eval()
    for name, (low, high) in ranges.items():
        quantizer = student.get_submodule(f"quantize_{name}")
        quantizer.range_min.fill_(low)
        quantizer.range_max.fill_(high)
    return student


def engine_step(
    teacher: nn.Module,
    images: Tensor,
    labels: Tensor,
    ranges: Mapping[str, tuple[float, float]],
    *,
    weight_bits: int,
    activation_bits: int,
) -> Callable[[], object]:
    """One fine-tuning step: augmentation, filter, losses, gradients and the optimizer's update.

    Args:
        teacher: float model in evaluation mode.
        images: (B, C, H, W) in normalised space.
        labels: (B,) int64.
        ranges: frozen (min, max) of each activation, by the graph node of its ReLU.
        weight_bits: width of the weights.
        activation_bits: width of the activations.
    """
    losses = LossConstants()
    graph = trace(teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last))
    student = calibrated_student(graph, ranges, BitWidths(weight_bits, activation_bits))
    points = find_tap_points(graph, images[:2])
    # A rate that moves nothing keeps the work of all rounds equal.
    recipe = finetune_recipe(
        losses, through_teacher=False, batch_size=len(images), learning_rate=1e-12, steps=10**9
    )
    bank = ImageBank(images.contiguous(memory_format=torch.channels_last), labels)
    batches = BatchSource(bank, len(images), (0.5, 1.0), Filter(cutoff=losses.cutoff or 0.0), 0)
    trainer = Trainer(SynqStep(graph, student, points, recipe), student, batches, recipe)
    return trainer.advance


def engine_synthesis(teacher: nn.Module, labels: Tensor) -> Callable[[], object]:
    """One iteration of the synthesis of a batch of (B, 3, 32, 32) images for ``labels``."""
    module = teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    graph = trace(module)
    images = torch.randn(len(labels), 3, 32, 32, device=labels.device)
    images = images.contiguous(memory_format=torch.channels_last)
    taps = BatchNormTeacher(graph, find_tap_points(graph, images[:2]))
    images.requires_grad_()
    optimizer = torch.optim.Adam([images], 0.5)

    def iterate() -> float:
        logits, inputs = taps(images)
        loss = taps.statistics_loss(inputs) + 10 * focal_class_loss(logits, labels, 2.0)
        optimizer.zero_grad()
        loss.backward(inputs=[images])
        optimizer.step()
        return loss.item()

    return iterate
