"""BatchNorm statistics of the quantized network."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from torch import nn

from synq_fast.engine.stages.stage import Made
from synq_fast.finetune.norms import estimate_norms

if TYPE_CHECKING:
    from synq_fast.engine.run import Run


def norms(run: Run, made: Made) -> Made:
    """Estimate them again, on every rank; without a checkpoint, because it takes two passes."""
    recipe, student, calls = run.recipe.norms, made.student, run.structure.norms
    with run.phase("norms", 1) as phase, closing(made.source.batches(recipe.images)) as batches:
        images, _ = batches(0)
        count = estimate_norms(
            student,
            run.graph,
            calls,
            images,
            spread=recipe.spread,
            precision=run.recipe.finetune.precision,
        )
        phase.show({"step": 1})
    run.reporter.line(
        f"norms: {count} of {len(calls)} calls of BatchNorms have statistics of their own now"
    )
    _take_from_first(run, student)
    return made


def _take_from_first(run: Run, student: nn.Module) -> None:
    """Equal already on equal devices; others may round differently."""
    own = [m for m in student.modules() if isinstance(m, nn.BatchNorm2d)]
    held = [t for m in own for t in (m.running_mean, m.running_var) if t is not None]
    for tensor, value in zip(
        held, run.ranks.from_first(lambda: [t.cpu() for t in held]), strict=True
    ):
        tensor.copy_(value)
