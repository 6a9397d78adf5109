"""Pixel optimization: images whose statistics and classes satisfy the teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from synq_fast.distributed import ALONE, Ranks
from synq_fast.errors import NonFiniteLossError
from synq_fast.out_of_memory import memory_errors
from synq_fast.recipes.schema import Synthesis
from synq_fast.seeding import generator_for
from synq_fast.synthesis.losses import (
    BatchNormTeacher,
    Targets,
    focal_class_loss,
    layered_weights,
)
from synq_fast.synthesis.pixel_checkpoint import PixelCheckpoint, PixelCheckpoints
from synq_fast.synthesis.transforms import random_resized_crop_flip

StepReport = Callable[[int, dict[str, float]], None]
LossTerms = dict[str, Tensor]


@dataclass(frozen=True)
class _Schedule:
    steps: int
    learning_rate: float
    min_learning_rate: float
    patience: int


def optimize_pixels(
    images: Tensor,
    terms: Callable[[Tensor, int], LossTerms],
    schedule: _Schedule,
    generator: torch.Generator,
    report: StepReport | None = None,
    checkpoint: PixelCheckpoint | None = None,
) -> Tensor:
    """Minimize the sum of ``terms(images, step)`` over the pixels.

    Adam with a rate that falls to a tenth when the loss stops improving.

    Args:
        images: (B, C, H, W) start, normalised space; not changed.
        terms: named scalar losses of the images at a step.
        schedule: steps and rates.
        generator: all that ``terms`` draw from.
        report: called with the step and the values of the terms, every tenth step.
        checkpoint: where to go on from, and where to save from time to time.

    Raises:
        NonFiniteLossError: a term is NaN or infinite; names the step and the term.
        OutOfMemoryError: the batch does not fit; its BatchNorm statistics cannot be split.
    """
    images = images.clone().requires_grad_()
    optimizer = torch.optim.Adam([images], schedule.learning_rate)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=schedule.patience, min_lr=schedule.min_learning_rate
    )
    done = checkpoint.restore(images, optimizer, plateau, generator) if checkpoint else 0
    if done and report is not None:
        report(done, {})
    for step in range(done, schedule.steps):
        with memory_errors("synthesis", "free memory or lower synthesis.batch_size"):
            losses = terms(images, step)
            total = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad()
            total.backward(inputs=[images])
            optimizer.step()
        value = total.item()
        if not torch.isfinite(total):
            bad = next(name for name, loss in losses.items() if not torch.isfinite(loss))
            raise NonFiniteLossError(
                f'synthesis stopped at step {step}: the term "{bad}" is {losses[bad].item()}. '
                f"Lower synthesis.learning_rate, or check the teacher for NaN weights"
            )
        plateau.step(value)
        if checkpoint is not None and checkpoint.due and step + 1 < schedule.steps:
            checkpoint.save(step + 1, images, optimizer, plateau, generator)
        if report is not None and (step % 10 == 9 or step == schedule.steps - 1):
            report(step + 1, {name: loss.item() for name, loss in losses.items()})
    return images.detach()


class PixelSynthesizer:
    """Makes batches of labelled images from a teacher with BatchNorm layers.

    The loss is HAST's: BatchNorm statistics plus the focal class loss, with SynQ's optional
    match of deep-layer statistics to calibration centres (METHODS 1.1, with its pooling and
    weighting mistakes corrected).
    """

    def __init__(
        self,
        teacher: BatchNormTeacher,
        recipe: Synthesis,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        seed: int,
        device: torch.device,
        checkpoints: PixelCheckpoints | None = None,
    ) -> None:
        """Prepare for images (C, H, W) of ``input_shape`` in ``classes`` classes.

        With ``checkpoints`` a killed process loses little of a batch, and nothing of the centres.
        """
        self.checkpoints = checkpoints
        self.teacher, self.recipe, self.seed = teacher, recipe, seed
        self.input_shape, self.classes, self.device = input_shape, classes, device
        self.center_targets: Targets | None = None

    def batch(
        self, index: int, count: int, report: StepReport | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images (count, C, H, W) and labels (count,) of one batch; depends only on its index."""
        generator = generator_for(self.seed, "synthesis", index)
        # Every class as often as any other, in random order, starting where the last batch ended.
        labels = (torch.arange(count) + index * self.recipe.batch_size) % self.classes
        labels = labels[torch.randperm(count, generator=generator)].to(self.device)
        start = torch.randn(count, *self.input_shape, generator=generator).to(self.device)
        recipe = self.recipe
        deep_only = layered_weights(len(self.teacher.running), 0.0, 1.0)

        def terms(images: Tensor, step: int) -> LossTerms:
            augmented = torch.rand((), generator=generator) < recipe.augment_probability
            if augmented:
                images = random_resized_crop_flip(images, recipe.augment_scale, generator)
            logits, inputs = self.teacher(images)
            losses = {
                "statistics": recipe.statistics_weight * self.teacher.statistics_loss(inputs),
                "class": recipe.class_weight * focal_class_loss(logits, labels, recipe.focal_gamma),
            }
            if self.center_targets is not None:
                losses["centers"] = recipe.centers.weight * self.teacher.statistics_loss(
                    inputs, self.center_targets, deep_only
                )
            return losses

        schedule = _Schedule(
            recipe.steps, recipe.learning_rate, recipe.min_learning_rate, recipe.patience
        )
        checkpoint = self.checkpoints.of(_shard(index)) if self.checkpoints else None
        return optimize_pixels(start, terms, schedule, generator, report, checkpoint), labels

    def forget(self, index: int) -> None:
        """Delete the checkpoint of a batch, once its images are in a shard."""
        if self.checkpoints is not None:
            self.checkpoints.of(_shard(index)).discard()

    def make_centers(self, report: StepReport | None = None, ranks: Ranks = ALONE) -> None:
        """Optimize one image per class and keep their statistics as targets of deep layers.

        Shallow layers match the running statistics loosely and deep ones tightly (TexQ). The
        targets are the statistics of all centre images pooled together; ``ranks`` make a part of
        them each.
        """
        recipe = self.recipe.centers
        generator = generator_for(self.seed, "centers")
        weights = layered_weights(
            len(self.teacher.running), recipe.shallow_weight, recipe.deep_weight
        )
        schedule = _Schedule(
            recipe.steps, recipe.learning_rate, recipe.min_learning_rate, self.recipe.patience
        )
        made: dict[int, list[Tensor]] = {}
        groups = torch.arange(self.classes, device=self.device).split(self.recipe.batch_size)
        for index, labels in enumerate(groups):
            # Drawn for images that are kept and for those of other ranks too: nobody's depend on
            # how many ranks there are, or on what was made before.
            start = torch.randn(len(labels), *self.input_shape, generator=generator)
            if index not in ranks.mine(range(len(groups))):
                continue

            def terms(images: Tensor, step: int, labels: Tensor = labels) -> LossTerms:
                logits, inputs = self.teacher(images)
                return {
                    "statistics": self.teacher.statistics_loss(inputs, weights=weights),
                    "class": recipe.class_weight * focal_class_loss(logits, labels, 0.0),
                }

            made[index] = [
                self._kept(f"centers-{index:05d}", start, terms, schedule, generator, report)
            ]
        shared = ranks.share(made, len(groups))
        self.center_targets = self._pooled_statistics([b.to(self.device) for (b,) in shared])

    def _kept(
        self,
        name: str,
        start: Tensor,
        terms: Callable[[Tensor, int], LossTerms],
        schedule: _Schedule,
        generator: torch.Generator,
        report: StepReport | None,
    ) -> Tensor:
        """Images that an earlier process finished, or new ones, which are then kept."""
        keep = self.checkpoints
        kept = keep.read_result(name) if keep else None
        if kept is not None:
            if report is not None:
                report(schedule.steps, {})
            return kept.to(self.device)
        checkpoint = keep.of(name) if keep else None
        start = start.to(self.device)
        images = optimize_pixels(start, terms, schedule, generator, report, checkpoint)
        if keep is not None:
            keep.write_result(name, images)
        return images

    @torch.no_grad()
    def _pooled_statistics(self, batches: list[Tensor]) -> Targets:
        """Mean and biased variance (C,) of each BatchNorm input over all batches together."""
        total = sum(map(len, batches))
        moments: list[Tensor] = []
        for batch in batches:
            _, inputs = self.teacher(batch)
            means = [x.double().mean((0, 2, 3)) for x in inputs]
            squares = [x.double().square().mean((0, 2, 3)) for x in inputs]
            share = len(batch) / total
            shares = [share * torch.stack(pair) for pair in zip(means, squares, strict=True)]
            moments = [a + b for a, b in zip(moments, shares, strict=True)] if moments else shares
        return [(m.float(), (s - m.square()).float()) for m, s in moments]


def _shard(index: int) -> str:
    return f"shard-{index:05d}"
