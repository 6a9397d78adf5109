"""Activation ranges from images."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from torch import fx

from synq_fast.bank.source import ImageSource
from synq_fast.engine.stages.stage import Made
from synq_fast.finetune.attention_operands import fit_attention_operands
from synq_fast.finetune.calibration import calibrate
from synq_fast.finetune.linear_inputs import fit_linear_inputs
from synq_fast.finetune.probabilities import fit_probabilities
from synq_fast.optimize.loop import Report
from synq_fast.storage.checkpoint_file import CheckpointFile

if TYPE_CHECKING:
    from synq_fast.engine.run import Run


def calibration(run: Run, made: Made) -> Made:
    """Find the ranges, and measure the model as it is then."""
    recipe = run.recipe.quantization
    with run.phase("calibration", recipe.calibration_batches) as phase:
        checkpoint = run.checkpoint("calibration")
        find_ranges(run, made.student, made.source, phase.show, checkpoint)
    if "post-training" not in run.metrics:
        run.measure("post-training", made.student)
        run.write_metrics()
    return made


def find_ranges(
    run: Run,
    student: fx.GraphModule,
    source: ImageSource,
    report: Report | None = None,
    checkpoint: CheckpointFile | None = None,
) -> None:
    """Find every activation range of a student on images of a source."""
    recipe, attentions = run.recipe.quantization, run.structure.attentions
    calibrate(
        student,
        source.batches(recipe.calibration_batch_size),
        recipe.calibration_batches,
        report=report,
        checkpoint=checkpoint,
        fingerprint=run.student_fingerprint(student),
        precision=run.recipe.finetune.precision,
        ranks=run.ranks,
    )
    if attentions or recipe.range == "output":
        with closing(source.batches(recipe.calibration_batch_size)) as batches:
            images, _ = batches(0)
        if recipe.range == "output":
            fit_linear_inputs(student, images)
            fit_attention_operands(student, attentions, images)
        fit_probabilities(student, attentions, images)
