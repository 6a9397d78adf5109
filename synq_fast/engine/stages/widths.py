"""Widths of every quantizer where a run is asked for an average alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import fx

from synq_fast.bank.source import ImageSource
from synq_fast.engine.stages.stage import Made
from synq_fast.engine.student import round_weights
from synq_fast.finetune.sensitivity import SensitivityLoop
from synq_fast.quant import BitWidths, coverage_of
from synq_fast.quant.allocation import averages, choose
from synq_fast.quant.bits import HIGHEST, LOWEST, AutoBits
from synq_fast.quant.sensitivity import Sensitivity
from synq_fast.quant.widths import widths_of

if TYPE_CHECKING:
    from synq_fast.engine.run import Run


def widths(run: Run, made: Made) -> Made:
    """Find the widths, and put the student together with them."""
    assert isinstance(run.bits, AutoBits)
    average = run.bits.average
    found = sensitivity_of(run, made.source)
    lowest, highest = (
        widths_of(run.build_student(BitWidths(bits, bits))) for bits in (LOWEST, HIGHEST)
    )
    chosen = run.ranks.from_first(lambda: choose(found, average, lowest, highest))
    student = run.build_student(chosen)
    run.coverage = coverage_of(student)
    used = averages(found.quantizers, chosen)
    run.metrics["coverage"], run.metrics["average bits"] = run.coverage.as_dict(), used
    run.write_metrics()
    run.reporter.line(
        f"{run.bits}: {', '.join(f'{kind} {bits:.3f}' for kind, bits in used.items())} bits on "
        f"average"
    )
    for line in chosen.lines():
        run.reporter.line(line)
    return replace(made, student=student)


def sensitivity_of(run: Run, source: ImageSource) -> Sensitivity:
    """What each quantizer of the run's network costs at each width, on its calibration images.

    Widths that ``end_bits`` and ``layer_bits`` fix are passed over: every quantizer is measured at
    every width.
    """
    quantization = replace(run.recipe.quantization, end_bits=0, layer_bits=())

    def build(bits: int) -> fx.GraphModule:
        student = run.build_student(BitWidths(bits, bits), quantization)
        round_weights(student, quantization)
        return student

    count, size = quantization.calibration_batches, quantization.calibration_batch_size
    loop = SensitivityLoop(
        run.graph,
        build,
        source.batches(size),
        count,
        checkpoint=run.checkpoint("sensitivity"),
        fingerprint=run.fingerprint(run.recipe),
        ranks=run.ranks,
    )
    with run.phase("sensitivity", loop.steps) as phase:
        quantizers = loop.run(phase.show)
    name, recipe = run.teacher.name, run.recipe.name
    return Sensitivity(name, recipe, run.seed, count * size, quantizers)
