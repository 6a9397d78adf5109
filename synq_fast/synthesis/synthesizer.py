"""Images that are optimized until their losses against the teacher are small."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from synq_fast.bank.images import Bank
from synq_fast.distributed import ALONE, Ranks
from synq_fast.optimize.loop import Loop, Report
from synq_fast.runtime.precision import tensor_float32
from synq_fast.runtime.seeding import generator_for, normal_images
from synq_fast.synthesis.draws import Draws
from synq_fast.synthesis.kept import Kept
from synq_fast.synthesis.latent import LatentImages
from synq_fast.synthesis.losses import (
    IMAGE_LOSSES,
    Enlarged,
    Start,
    Targets,
    focal_class_loss,
    layered_weights,
    named_losses,
    statistics_distance,
)
from synq_fast.synthesis.optimization import (
    Augmentation,
    ImageOptimization,
    Schedule,
    Terms,
    image_loop,
)
from synq_fast.synthesis.parametrization import Parametrization, Pixels
from synq_fast.synthesis.regions import enlarged, place_classes
from synq_fast.synthesis.settings import Synthesis
from synq_fast.synthesis.sparse import Dropping
from synq_fast.synthesis.spectrum import SpectrumImages
from synq_fast.synthesis.student import ImageStudent
from synq_fast.synthesis.teacher import ClassMeans, ImageTeacher, WeightedLosses


@dataclass(frozen=True)
class Round:
    """Images that are made again while the quantized network is trained."""

    number: int
    """From 1; the first images are those of round 0."""
    student: ImageStudent
    before: Bank | None = None
    """The images of the round before, to go on from; None: from noise."""


class Synthesizer:
    """Makes batches of labelled images from a teacher.

    They minimize the recipe's losses, with SynQ's optional match of deep-layer statistics to
    calibration centres (pooled and weighted as in the paper, not as in its published code).
    """

    def __init__(
        self,
        teacher: ImageTeacher,
        recipe: Synthesis,
        *,
        input_shape: tuple[int, int, int],
        classes: int,
        seed: int,
        device: torch.device,
        valid: tuple[Tensor, Tensor] | None = None,
        kept: Kept | None = None,
        round_: Round | None = None,
    ) -> None:
        """Prepare for images (C, H, W) of ``input_shape`` in ``classes`` classes.

        With ``valid``, the least and the largest value of each channel (C, 1, 1), the recipe may
        keep pixels there. With ``kept`` a killed process loses little of a batch, and nothing of
        the centres. Without a ``round_``, losses that read the quantized network are left out.
        """
        self.round = round_
        self.steps = recipe.refresh.steps if round_ else recipe.steps
        self.grid = teacher.patches_along(input_shape) if recipe.regions.most else 0
        self.kept, self.valid = kept, valid if recipe.clip else None
        self.teacher, self.recipe, self.seed = teacher, recipe, seed
        self.input_shape, self.classes, self.device = input_shape, classes, device
        self.center_targets: Targets | None = None
        self.losses = named_losses(IMAGE_LOSSES, recipe.losses)
        self._means: ClassMeans | None = None

    @property
    def follows(self) -> bool:
        """Whether a batch depends on those before it, which ``remember`` must see."""
        return any("earlier" in loss.reads for loss in self.losses.values())

    def remember(self, images: Tensor, labels: Tensor) -> None:
        """Take in a batch, on any device, that later ones keep a distance from."""
        if self.follows:
            labels = labels.to(self.device)
            images = images.to(self.device, memory_format=torch.channels_last)
            with tensor_float32(self.recipe.precision == "tf32"):
                features = self.teacher.judged(images, labels).features
            self._class_means(features.shape[1]).add(features, labels)

    def _class_means(self, size: int) -> ClassMeans:
        if self._means is None:
            self._means = ClassMeans(self.classes, size, self.device)
        return self._means

    def batch(self, index: int, count: int, report: Report | None = None) -> tuple[Tensor, Tensor]:
        """Images (count, C, H, W) and labels (count,) of one batch; depends only on its index."""
        loop, parametrization = self.optimization(index, count)
        with self.round.student.held() if self.round else nullcontext():
            images, labels = _finished(loop, parametrization, report)
        if not any("labels" in loss.reads for loss in self.losses.values()):
            # No image was made for its label: it is of the class that the teacher sees.
            with tensor_float32(self.recipe.precision == "tf32"):
                labels = self.teacher.judged(images, labels).logits.argmax(1)
        return images, labels

    def optimization(self, index: int, count: int) -> tuple[Loop, Parametrization]:
        """The optimization of a batch before its first iteration, and what it optimizes."""
        again = () if self.round is None else ("round", self.round.number)
        before = None if self.round is None else self.round.before
        # Images that go on are for the labels and places that they began with.
        purpose = ("synthesis", index, *(again if before is None else ()))
        generator = generator_for(self.seed, *purpose)
        # Every class as often as any other, in random order, starting where the last batch ended.
        order = torch.arange(count, device="cpu") + index * self.recipe.batch_size
        mixed = torch.randperm(count, generator=generator, device="cpu")
        labels = (order % self.classes)[mixed].to(self.device)
        recipe = self.recipe
        places = place_classes(labels, self.classes, generator) if recipe.regions.most else None
        images: Parametrization
        if recipe.parametrization == "latent":
            images = LatentImages(recipe.latent, labels, self.input_shape, generator)
        else:
            start = normal_images(count, self.input_shape, generator)
            if before is not None:
                start, _ = before.take(order)
            start = start.to(self.device)
            if recipe.parametrization == "pixels":
                images = Pixels(start, labels, self.valid)
            else:
                images = SpectrumImages(start, labels, white=before is None)
        shapes = self.teacher.attention_shapes
        begins = Start(labels, generator, *self._earlier(), shapes, places)
        held = {name: loss.begin(begins) for name, loss in self.losses.items()}
        look = None if self.round is None else self.round.student.look
        weighted = WeightedLosses(self.teacher, self.losses, held, look)
        deep_only = layered_weights(len(self.teacher.running), 0.0, 1.0)
        if before is not None:
            generator = generator_for(self.seed, "synthesis", index, *again)

        sparse = recipe.sparse
        dropping = Dropping(sparse, self.teacher, self.steps) if sparse.share else None
        draws = Draws(
            weighted.losses,
            recipe.regions,
            self.grid,
            generator,
            size=(self.input_shape[1], self.input_shape[2]),
            images=count,
            steps=self.steps,
            attentions=shapes,
            device=self.device,
        )
        held_places = None if places is None else places.to(self.device)

        def terms(
            images: Tensor,
            labels: Tensor,
            whole: Tensor | None = None,
            drawn: Sequence[Tensor] = (),
        ) -> dict[str, Tensor]:
            seen = self.teacher(images, labels, dropping.seen if dropping else None)
            regions, asked = draws.split(drawn)
            if regions is not None and len(regions[0]) and held_places is not None:
                assert whole is not None
                seen = replace(seen, enlarged=self._enlarged(whole, held_places, *regions))
            losses = weighted.of(seen, asked)
            if self.center_targets is not None:
                distance = statistics_distance(seen.norms, self.center_targets, deep_only)
                losses["centers"] = recipe.centers.weight * distance
            return losses

        schedule = Schedule(
            self.steps,
            recipe.learning_rate,
            recipe.min_learning_rate,
            recipe.patience,
            recipe.betas,
        )
        augmentation = Augmentation(
            recipe.augment_probability, recipe.augment_scale, recipe.augment_roll
        )
        loop = self._loop(
            images, terms, schedule, generator, _shard(index), augmentation, dropping, draws
        )
        return loop, images

    def _enlarged(
        self, images: Tensor, classes: Tensor, regions: Tensor, places: Tensor
    ) -> Enlarged:
        """What the teacher shows of regions (R, B, 4) of images, whose places have classes."""
        found = enlarged(images, regions)
        labels = classes.T.gather(0, places).flatten()
        return Enlarged(self.teacher(found, labels).logits, labels, places)

    def _earlier(self) -> tuple[Tensor, Tensor]:
        """Mean features (classes, D) of earlier batches, and counts (classes,)."""
        means = self._means or ClassMeans(self.classes, 1, self.device)
        return means.means(), means.counts

    def _loop(
        self,
        images: Parametrization,
        terms: Terms,
        schedule: Schedule,
        generator: torch.Generator,
        name: str,
        augmentation: Augmentation | None = None,
        dropping: Dropping | None = None,
        draws: Draws | None = None,
    ) -> Loop:
        optimization = ImageOptimization(
            images,
            terms,
            schedule,
            generator,
            self.device,
            augmentation=augmentation,
            dropping=dropping,
            draws=draws,
            swings=self.teacher.swings,
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
                seen = self.teacher(images, labels)
                class_loss = focal_class_loss(seen.logits, labels, 0.0)
                return {
                    "statistics": statistics_distance(seen.norms, seen.running, weights),
                    "classes": recipe.class_weight * class_loss,
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
        loop = self._loop(pixels, terms, schedule, generator, name)
        images, _ = _finished(loop, pixels, report)
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
                inputs = self.teacher.judged(batch, torch.zeros(0)).norms
            means = [x.double().mean((0, 2, 3)) for x in inputs]
            squares = [x.double().square().mean((0, 2, 3)) for x in inputs]
            share = len(batch) / total
            shares = [share * torch.stack(pair) for pair in zip(means, squares, strict=True)]
            moments = [a + b for a, b in zip(moments, shares, strict=True)] if moments else shares
        return [(m.float(), (s - m.square()).float()) for m, s in moments]


def _shard(index: int) -> str:
    return f"shard-{index:05d}"


@torch.no_grad()
def _finished(loop: Loop, images: Parametrization, report: Report | None) -> tuple[Tensor, Tensor]:
    """Images and labels at the end of a loop, which goes on where a process was stopped."""
    if loop.resume() and report is not None:
        report({"step": loop.done})
    with torch.enable_grad():
        loop.run(report)
    made, labels = images.images(*images.draw(loop.done))
    return made.detach(), labels
