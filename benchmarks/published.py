"""The published side of the step and synthesis comparisons."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from synq_fast.runtime.memory_format import channels_last

from .baselines.published_config import PublishedStepConfig
from .baselines.published_step import PublishedStep, build_published_student
from .baselines.published_synthesis import PublishedSynthesis, PublishedSynthesisConfig
from .cases import ACTIVATION_BITS, WEIGHT_BITS, Workload


def step_config(work: Workload, *, lean: bool = False, **changes: Any) -> PublishedStepConfig:
    """The published setting for the workload's images, or its mathematics without the costs.

    Hooks do not accumulate while it is timed: every step is of one age, see ``standing_hooks``.
    """
    # A rate that moves nothing keeps the work of all rounds equal.
    fixed = {"learning_rate": 1e-12, "drop_perturbed_alignment": not work.large}
    if lean:
        return PublishedStepConfig.lean(**fixed, **changes)
    return replace(PublishedStepConfig(), **{"leak_hooks": False, **fixed, **changes})


def published_step(work: Workload, config: PublishedStepConfig) -> Callable[[], object]:
    """One step on the workload's batch; activation ranges are the extremes of the batch."""
    teacher, images = work.teacher.module, work.images
    if config.channels_last:
        teacher = channels_last(copy.deepcopy(teacher))
    student = build_published_student(teacher, WEIGHT_BITS, ACTIVATION_BITS)
    step = PublishedStep(teacher, student, config)
    step.observe_ranges(images)
    return partial(step.step, images, work.labels)


def synthesis_config(work: Workload) -> PublishedSynthesisConfig:
    """The published setting for the workload's images."""
    return PublishedSynthesisConfig(
        image_shape=work.teacher.input_shape,
        # An exponent of 2 has a finite gradient everywhere, so rounds cannot differ through NaN.
        gamma=2.0,
        augment_probability=0.5 if work.large else 0.0,
    )


class PublishedIterations:
    """Iterations on one batch; of the augmented kind exactly the share that chance would give."""

    def __init__(
        self,
        work: Workload,
        config: PublishedSynthesisConfig,
        iterations: int,
        *,
        layered: bool = False,
    ) -> None:
        """Prepare.

        Args:
            work: teacher, labels and, by its images, the shape.
            config: constants and switches; an augmentation probability above 0 counts as 1/2.
            iterations: of one call, an even number.
            layered: add SynQ's layered term, with the running statistics in the centres' place.
        """
        module: nn.Module = work.teacher.module
        statistics: list[Any] | None = None
        if layered:
            norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
            statistics = [(norm.running_mean, norm.running_var) for norm in norms]
        self._run = PublishedSynthesis(module, work.labels, config, statistics)
        chances = (1.0, 0.0) if config.augment_probability else (0.0,)
        self._chances = chances * (iterations // len(chances))

    def __call__(self) -> None:
        """Do all iterations of a call."""
        run = self._run
        for chance in self._chances:
            run.config = replace(run.config, augment_probability=chance)
            run.iterate()
        if hasattr(run, "_leaked"):
            # Every iteration leaks its graph; a benchmark cannot keep them all.
            run._leaked.collected.clear()
