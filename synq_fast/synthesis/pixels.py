"""Pixel optimization: images whose statistics and classes satisfy the teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from synq_fast.distributed import ALONE, Ranks
from synq_fast.optimize.loop import Loop, Report
from synq_fast.runtime.precision import tensor_float32
from synq_fast.runtime.seeding import generator_for, normal_images
from synq_fast.synthesis.kept import Kept
from synq_fast.synthesis.losses import (
    BatchNormTeacher,
    Targets,
    focal_class_loss,
    layered_weights,
)
from synq_fast.synthesis.optimization import (
    Augmentation,
    ImageOptimization,
    Schedule,
    Terms,
    image_loop,
)
from synq_fast.synthesis.parametrization import Pixels
from synq_fast.synthesis.settings import Synthesis


class PixelSynthesizer:
    """Makes batches of labelled images from a teacher with BatchNorm layers.

    The loss is HAST's: BatchNorm statistics plus the focal class loss, with SynQ's optional
    match of deep-layer statistics to calibration centres (pooled and weighted as in the paper, not
    as in its published code).
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
        kept: Kept | None = None,
    ) -> None:
        """Prepare for images (C, H, W) of ``input_shape`` in ``classes`` classes.

        With ``kept`` a killed process loses little of a batch, and nothing of the centres.
        """
        self.kept = kept
        self.teacher, self.recipe, self.seed = teacher, recipe, seed
        self.input_shape, self.classes, self.device = input_shape, classes, device
        self.center_targets: Targets | None = None

    def batch(self, index: int, count: int, report: Report | None = None) -> tuple[Tensor, Tensor]:
        """Images (count, C, H, W) and labels (count,) of one batch; depends only on its index."""
        loop, pixels = self.optimization(index, count)
        return _finished(loop, pixels, report), pixels.labels

    def optimization(self, index: int, count: int) -> tuple[Loop, Pixels]:
        """The optimization of a batch before its first iteration, and what it optimizes."""
        generator = generator_for(self.seed, "synthesis", index)
        # Every class as often as any other, in random order, starting where the last batch ended.
        order = torch.arange(count, device="cpu") + index * self.recipe.batch_size
        mixed = torch.randperm(count, generator=generator, device="cpu")
        labels = (order % self.classes)[mixed].to(self.device)
        start = normal_images(count, self.input_shape, generator).to(self.device)
        recipe = self.recipe
        deep_only = layered_weights(len(self.teacher.running), 0.0, 1.0)

        def terms(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
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

        schedule = Schedule(
            recipe.steps, recipe.learning_rate, recipe.min_learning_rate, recipe.patience
        )
        augmentation = Augmentation(recipe.augment_probability, recipe.augment_scale)
        pixels = Pixels(start, labels)
        return self._loop(pixels, terms, schedule, generator, _shard(index), augmentation), pixels

    def _loop(
        self,
        pixels: Pixels,
        terms: Terms,
        schedule: Schedule,
        generator: torch.Generator,
        name: str,
        augmentation: Augmentation | None = None,
    ) -> Loop:
        optimization = ImageOptimization(
            pixels,
            terms,
            schedule,
            generator,
            self.device,
            augmentation=augmentation,
            precision=self.recipe.precision,
        )
        checkpoint = self.kept.checkpoint(name) if self.kept else None
        return image_loop(optimization, record=self.recipe.cuda_graph, checkpoint=checkpoint)

    def forget(self, index: int) -> None:
        """Delete the checkpoint of a batch, once its images are in a shard."""
        if self.kept is not None:
            self.kept.checkpoint(_shard(index)).discard()

    def make_centers(self, report: Report | None = None, ranks: Ranks = ALONE) -> None:
        """Optimize one image per class and keep their statistics as targets of deep layers.

        Shallow layers match the running statistics loosely and deep ones tightly (TexQ). The
        targets are the statistics of all centre images pooled together; ``ranks`` make a part of
        them each.
        """
        recipe = self.recipe.centers
        weights = layered_weights(
            len(self.teacher.running), recipe.shallow_weight, recipe.deep_weight
        )
        schedule = Schedule(
            recipe.steps, recipe.learning_rate, recipe.min_learning_rate, self.recipe.patience
        )
        made: dict[int, list[Tensor]] = {}
        groups = torch.arange(self.classes, device=self.device).split(self.recipe.batch_size)
        for index, labels in enumerate(groups):
            if index not in ranks.mine(range(len(groups))):
                continue
            generator = generator_for(self.seed, "centers", index)
            start = normal_images(len(labels), self.input_shape, generator)

            def terms(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
                logits, inputs = self.teacher(images)
                return {
                    "statistics": self.teacher.statistics_loss(inputs, weights=weights),
                    "class": recipe.class_weight * focal_class_loss(logits, labels, 0.0),
                }

            made[index] = [
                self._center(
                    f"centers-{index:05d}", start, labels, terms, schedule, generator, report
                )
            ]
        shared = ranks.share(made, len(groups))
        # Files and other ranks know no memory format, but roundings depend on it.
        batches = [b.to(self.device, memory_format=torch.channels_last) for (b,) in shared]
        self.center_targets = self._pooled_statistics(batches)

    def _center(
        self,
        name: str,
        start: Tensor,
        labels: Tensor,
        terms: Terms,
        schedule: Schedule,
        generator: torch.Generator,
        report: Report | None,
    ) -> Tensor:
        """Images that an earlier process finished, or new ones, which are then kept."""
        found = self.kept.read_result(name) if self.kept else None
        if found is not None:
            if report is not None:
                report({"step": schedule.steps})
            return found.to(self.device)
        pixels = Pixels(start.to(self.device), labels)
        images = _finished(self._loop(pixels, terms, schedule, generator, name), pixels, report)
        if self.kept is not None:
            self.kept.write_result(name, images)
        return images

    @torch.no_grad()
    def _pooled_statistics(self, batches: list[Tensor]) -> Targets:
        """Mean and biased variance (C,) of each BatchNorm input over all batches together."""
        total = sum(map(len, batches))
        moments: list[Tensor] = []
        for batch in batches:
            with tensor_float32(self.recipe.precision == "tf32"):
                _, inputs = self.teacher(batch)
            means = [x.double().mean((0, 2, 3)) for x in inputs]
            squares = [x.double().square().mean((0, 2, 3)) for x in inputs]
            share = len(batch) / total
            shares = [share * torch.stack(pair) for pair in zip(means, squares, strict=True)]
            moments = [a + b for a, b in zip(moments, shares, strict=True)] if moments else shares
        return [(m.float(), (s - m.square()).float()) for m, s in moments]


def _shard(index: int) -> str:
    return f"shard-{index:05d}"


def _finished(loop: Loop, pixels: Pixels, report: Report | None) -> Tensor:
    """The images at the end of a loop, which goes on where an earlier process was stopped."""
    if loop.resume() and report is not None:
        report({"step": loop.done})
    loop.run(report)
    return pixels.pixels.detach()
