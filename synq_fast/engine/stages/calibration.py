"""Activation ranges from images."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from synq_fast.engine.stages.stage import Made
from synq_fast.finetune.attention_operands import fit_attention_operands
from synq_fast.finetune.calibration import calibrate
from synq_fast.finetune.linear_inputs import fit_linear_inputs
from synq_fast.finetune.probabilities import fit_probabilities

if TYPE_CHECKING:
    from synq_fast.engine.run import Run


def calibration(run: Run, made: Made) -> Made:
    """Find the ranges, and measure the model as it is then."""
    recipe = run.recipe.quantization
    batches = made.source.batches(recipe.calibration_batch_size)
    with run.phase("calibration", recipe.calibration_batches) as phase:
        calibrate(
            made.student,
            batches,
            recipe.calibration_batches,
            report=phase.show,
            checkpoint=run.checkpoint("calibration"),
            fingerprint=run.student_fingerprint(made.student),
            precision=run.recipe.finetune.precision,
            ranks=run.ranks,
        )
    if run.structure.attentions or recipe.range == "output":
        with closing(made.source.batches(recipe.calibration_batch_size)) as batches:
            images, _ = batches(0)
        if recipe.range == "output":
            fit_linear_inputs(made.student, images)
            fit_attention_operands(made.student, run.structure.attentions, images)
        fit_probabilities(made.student, run.structure.attentions, images)
    if "post-training" not in run.metrics:
        run.measure("post-training", made.student)
        run.write_metrics()
    return made
