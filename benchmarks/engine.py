"""The engine's side of the step and synthesis comparisons."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from synq_fast.bank.batches import BatchSource, Filter
from synq_fast.bank.images import ImageBank
from synq_fast.engine.student import build_student
from synq_fast.finetune.losses import Cam, Distillation, Features
from synq_fast.finetune.settings import Finetune, Perturbation
from synq_fast.finetune.step import Step
from synq_fast.finetune.training import Training, training_loop
from synq_fast.optimize.loop import Loop
from synq_fast.quant import (
    BitWidths,
    Structure,
    find_structure,
    held_weights,
    observing,
    trace,
)
from synq_fast.quant.settings import Quantization
from synq_fast.runtime.memory_format import channels_last
from synq_fast.synthesis.losses import Classes, Statistics
from synq_fast.synthesis.settings import Synthesis
from synq_fast.synthesis.synthesizer import Synthesizer
from synq_fast.synthesis.teacher import ImageTeacher

from .baselines.published_config import LossConstants
from .cases import ACTIVATION_BITS, WEIGHT_BITS, Workload


@dataclass(frozen=True)
class Parts:
    """SynQ's three additions to the method that it builds on."""

    low_pass: bool = True
    cam: bool = True
    difficulty_mask: bool = True


def finetune_recipe(
    losses: LossConstants,
    *,
    through_teacher: bool,
    masked: bool = True,
    perturbed_features: bool = False,
    cam: bool = True,
    **changes: Any,
) -> Finetune:
    """The published constants as a recipe section."""
    distillation = Distillation(
        losses.alpha, losses.temperature, losses.ce_weight, masked, losses.difficulty_threshold
    )
    features = Features(losses.alignment_weight, in_perturbed_pass=perturbed_features)
    recipe = Finetune(
        perturbation=Perturbation(losses.perturbed_weight, losses.epsilon, through_teacher),
        losses=(distillation, features, Cam(losses.cam_weight if cam else 0.0)),
    )
    return replace(recipe, **changes)


def calibrated_student(
    graph: fx.GraphModule, ranges: Mapping[str, tuple[float, float]], bits: BitWidths
) -> fx.GraphModule:
    """A student with given ranges, by the graph node of each ReLU."""
    student = build_student(graph, bits, Quantization()).eval()
    for name, (low, high) in ranges.items():
        quantizer = student.get_submodule(f"quantize_{name}")
        quantizer.get_buffer("range_min").fill_(low)
        quantizer.get_buffer("range_max").fill_(high)
    return student


def _traced(work: Workload) -> tuple[fx.GraphModule, Structure]:
    graph = trace(channels_last(copy.deepcopy(work.teacher.module)), work.teacher.example())
    return graph, find_structure(graph, work.images[:2])


def engine_trainer(
    work: Workload, parts: Parts = Parts(), *, record: bool = True, precision: str = "float32"
) -> Loop:
    """A loop whose ``advance`` is one step as the engine does it, its data included.

    Ranges are the extremes of the batch, as the published student's are. On a GPU the step is
    replayed from a recording, unless ``record`` forbids it.
    """
    losses = LossConstants()
    graph, points = _traced(work)
    images = work.images.contiguous(memory_format=torch.channels_last)
    student = build_student(
        graph, BitWidths(WEIGHT_BITS, ACTIVATION_BITS), Quantization(range="minmax")
    ).eval()
    with torch.no_grad(), observing(student), held_weights(student):
        student(images)
    recipe = finetune_recipe(
        losses,
        through_teacher=False,
        batch_size=len(images),
        # A rate that moves nothing keeps the work of all rounds equal.
        learning_rate=1e-12,
        steps=10**9,
        cuda_graph=record,
        precision=precision,
        masked=parts.difficulty_mask,
        perturbed_features=work.large,
        cam=parts.cam,
    )
    kept = Filter(cutoff=losses.cutoff or 0.0) if parts.low_pass else Filter("none")
    batches = BatchSource(ImageBank(images, work.labels), len(images), (0.5, 1.0), kept, 0)
    step = Step(graph, student, points, recipe)
    return training_loop(Training(step, student, batches, recipe))


class EngineSynthesis:
    """Iterations of the synthesis of batches like the workload's.

    Attributes:
        synthesizers: one that never augments, or one that always does and one that never does; so
            a call has as many iterations of either kind whatever chance would decide.
    """

    def __init__(
        self,
        work: Workload,
        *,
        augment: bool,
        iterations: int,
        record: bool = True,
        precision: str = "float32",
    ) -> None:
        """Prepare.

        Args:
            work: teacher and batch.
            augment: half of the iterations crop and flip the images, as published for ImageNet.
            iterations: how many a call does, an even number.
            record: on a GPU, replay iterations from recordings.
            precision: of the teacher, "float32" or "tf32".
        """
        taps = ImageTeacher(*_traced(work))
        chances = (1.0, 0.0) if augment else (0.0,)
        self._each = iterations // len(chances)
        self.synthesizers = [
            Synthesizer(
                taps,
                # An exponent of 2 has a finite gradient everywhere in the published loss too.
                Synthesis(
                    batch_size=len(work.labels),
                    losses=(Statistics(), Classes(gamma=2.0)),
                    augment_probability=chance,
                    precision=precision,
                    cuda_graph=record,
                ),
                input_shape=work.teacher.input_shape,
                classes=work.teacher.num_classes,
                seed=0,
                device=work.images.device,
            )
            for chance in chances
        ]
        self._runs = [s.optimization(0, len(work.labels))[0] for s in self.synthesizers]

    def __call__(self) -> None:
        """Do all iterations of a call and look at their losses."""
        for run in self._runs:
            for _ in range(self._each):
                run.advance()
            run.look()
