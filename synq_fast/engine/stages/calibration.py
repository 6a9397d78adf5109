"""Activation ranges from images, and what else follows from the same images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from synq_fast.bank.source import ImageSource
from synq_fast.engine.stages.stage import Made
from synq_fast.engine.student import round_weights
from synq_fast.finetune.attention_operands import fit_attention_operands
from synq_fast.finetune.calibration import calibrate
from synq_fast.finetune.linear_inputs import fit_linear_inputs
from synq_fast.finetune.norm_folds import Fold, apply_folds, measure_folds, take_ranges
from synq_fast.finetune.probabilities import fit_probabilities
from synq_fast.finetune.ridge import apply_corrections, ridge_corrections
from synq_fast.graph import called_module
from synq_fast.graph.norm_folding import foldable_norms
from synq_fast.models import Teacher
from synq_fast.optimize.loop import Report
from synq_fast.quant.activations import ActivationQuantizer
from synq_fast.storage.checkpoint_file import CheckpointFile

if TYPE_CHECKING:
    from synq_fast.engine.run import Run


def calibration(run: Run, made: Made) -> Made:
    """Find the ranges, and measure the model as it is then."""
    recipe = run.recipe.quantization
    if recipe.equalize != "never":
        _say_what_equalizing_moves(run, made)
    folds = _folded(run, made) if recipe.fold_norms != "never" else []
    if not recipe.ridge:
        _round(run, made)
    with run.phase("calibration", recipe.calibration_batches) as phase:
        checkpoint = run.checkpoint("calibration")
        find_ranges(run, made.student, made.source, phase.show, checkpoint, folds)
    if recipe.ridge:
        _correct(run, made)
        _round(run, made)
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
    folds: Sequence[Fold] = (),
) -> None:
    """Find every activation range of a student, whose norms were folded, on images of a source."""
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
    take_ranges(student, folds)
    _take_image_range(student, run.teacher)
    if attentions or recipe.range == "output":
        with closing(source.batches(recipe.calibration_batch_size)) as batches:
            images, _ = batches(0)
        if recipe.range == "output":
            fit_linear_inputs(student, images)
            fit_attention_operands(student, attentions, images)
        fit_probabilities(student, attentions, images)


def _take_image_range(student: fx.GraphModule, teacher: Teacher) -> None:
    """Give the image the range of valid pixels, where the network's normalisation is known.

    Synthetic images leave it by far, which takes steps from the pixels that there are.
    """
    known = teacher.known_range()
    if known is None:
        return
    low, high = known
    for node in student.graph.nodes:
        quantizer = called_module(student, node)
        if isinstance(quantizer, ActivationQuantizer) and node.args[0].op == "placeholder":
            quantizer.take(low.min(), high.max())


@torch.no_grad()
def _say_what_equalizing_moves(run: Run, made: Made) -> None:
    """Tell how far the float network's logits are from the equalized one's, which ends ReLU6."""
    with closing(made.source.batches(run.recipe.quantization.calibration_batch_size)) as batches:
        images, _ = batches(0)
    before, after = run.traced(images), run.graph(images)
    moved = (after - before).norm() / before.norm()
    same = (after.argmax(1) == before.argmax(1)).float().mean()
    run.reporter.line(
        f"equalize: the float network's logits move by {moved:.2%}, "
        f"{same:.0%} of {len(images)} images keep their class"
    )


def _images(run: Run, made: Made) -> Sequence[Tensor]:
    """Every batch of calibration."""
    recipe = run.recipe.quantization
    with closing(made.source.batches(recipe.calibration_batch_size)) as batches:
        return [batches(index)[0] for index in range(recipe.calibration_batches)]


def _folded(run: Run, made: Made) -> list[Fold]:
    """Fold the norms that the recipe means, and say which."""
    norms, others = foldable_norms(run.graph)
    found = measure_folds(made.student, norms, _images(run, made))
    found = run.ranks.from_first(lambda: found)
    always = run.recipe.quantization.fold_norms == "always"
    chosen = [each for each in found if always or each.helps]
    apply_folds(made.student, chosen)
    run.reporter.line(f"fold_norms: {len(chosen)} of {len(norms) + len(others)} LayerNorms folded")
    for each in found:
        change = each.folded_error / each.error - 1 if each.error else 0.0
        verb = "folded" if each in chosen else "left as it is"
        run.reporter.line(
            f"  {each.norm.norm}: {verb}, error of what reads it {change:+.1%} by the fold"
        )
    measured = {each.norm for each in found}
    for norm in norms:
        if norm not in measured:
            others[norm.norm] = "no quantizer of one range lies between it and its readers"
    for name, reason in others.items():
        run.reporter.line(f"  {name}: left as it is, {reason}")
    return chosen


def _correct(run: Run, made: Made) -> None:
    """Correct the weights for the rounding of what they multiply."""
    share = run.recipe.quantization.ridge
    found = ridge_corrections(made.student, _images(run, made), share)
    found = run.ranks.from_first(lambda: {name: v.cpu() for name, v in found.items()})
    apply_corrections(made.student, found)
    run.reporter.line(f"ridge: weights of {len(found)} linear layers corrected")


def _round(run: Run, made: Made) -> None:
    """Choose the codes of weights, once these are what they are."""
    turned = round_weights(made.student, run.recipe.quantization)
    if turned:
        run.reporter.line(f"weight_rounding: {turned} weights turned to their other neighbour")
