"""A generator that learns to draw images, and goes on learning while they are used."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from synq_fast.bank.batches import Batches, Filter
from synq_fast.bank.source import WHOLE
from synq_fast.engine.shown import image_report
from synq_fast.engine.stages.stage import Made
from synq_fast.optimize.loop import Advice
from synq_fast.runtime.defaults import plain_defaults
from synq_fast.runtime.seeding import generator_for
from synq_fast.synthesis.generator import ConditionalGenerator, Generated, OnlineBatches
from synq_fast.synthesis.losses import GENERATOR_LOSSES, ImageLoss, Seen, named_losses
from synq_fast.synthesis.optimization import ImageOptimization, Schedule, image_loop
from synq_fast.synthesis.teacher import ImageTeacher, WeightedLosses

if TYPE_CHECKING:
    from synq_fast.engine.run import Run


_ADVICE = Advice(
    "generator training",
    memory="free memory or lower generator.batch_size",
    finite="Lower generator.learning_rate, or check the teacher for NaN weights",
)


def generator(run: Run, made: Made) -> Made:
    """Train the generator alone, before its images are used."""
    recipe, classes = run.recipe.generator, run.teacher.num_classes
    with torch.random.fork_rng(devices=[]), plain_defaults():
        seed = generator_for(run.seed, "generator network").initial_seed()
        torch.default_generator.manual_seed(seed)
        network = ConditionalGenerator(
            recipe.latent,
            classes,
            run.teacher.input_shape,
            class_norms=recipe.condition == "norms",
        )
    generated = Generated(
        network,
        latent=recipe.latent,
        classes=classes,
        batch_size=recipe.batch_size,
        seed=run.seed,
        device=run.device,
    )
    losses = named_losses(GENERATOR_LOSSES, recipe.losses)
    optimization = ImageOptimization(
        generated,
        WeightedLosses(run.image_teacher, losses),
        # GDFQ's Adam; a loss of new images at every step says nothing of progress.
        Schedule(recipe.steps, recipe.learning_rate, recipe.learning_rate, 0, betas=(0.5, 0.999)),
        generator_for(run.seed, "generator crops"),
        run.device,
    )
    loop = image_loop(
        optimization,
        _ADVICE,
        record=recipe.cuda_graph,
        checkpoint=run.checkpoint("generator"),
        fingerprint=run.fingerprint(run.recipe),
        keeps_end=True,
    )
    with run.phase("generator", recipe.steps) as phase:
        report = image_report(run, phase.show, {"stage": "generator"})
        if loop.resume(run.ranks):
            report({"step": loop.done})
        loop.run(report)
    online = _Online(optimization, generated, run.recipe.filter, run.image_teacher, losses)
    return replace(made, images=online)


@dataclass
class _Online:
    """The generator's images, each used once."""

    optimization: ImageOptimization
    generated: Generated
    filter: Filter
    teacher: ImageTeacher
    losses: Mapping[str, ImageLoss]
    asked: int = 0

    def batches(
        self,
        size: int,
        crop_scale: tuple[float, float] = (1.0, 1.0),
        part: slice = WHOLE,
        student: nn.Module | None = None,
    ) -> Batches:
        def look(seen: Seen) -> Seen:
            assert student is not None
            return replace(seen, student=student(seen.images))

        terms = WeightedLosses(self.teacher, self.losses, student=None if student is None else look)
        # Numbers far apart, so that no batch is drawn twice.
        self.asked += 1
        first = self.asked << 40
        return OnlineBatches(
            self.optimization, self.generated, size, self.filter, first, terms, part
        )

    @torch.no_grad()
    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """What the generator draws now, with noise of no batch's."""
        drawn = self.generated.draw(-1, count)
        # A pass moves the running statistics of its BatchNorms.
        images: Tensor = copy.deepcopy(self.generated.network)(*drawn)
        return images, drawn[1]
