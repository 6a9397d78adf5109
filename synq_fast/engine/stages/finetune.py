"""End-to-end training of the quantized model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from synq_fast.engine.stages.stage import Made
from synq_fast.optimize.loop import Record

if TYPE_CHECKING:
    from synq_fast.engine.run import Run


_SOURCE = {"stage": "finetune"}


def finetune(run: Run, made: Made) -> Made:
    """Train the student, and measure it on the way where that is asked for."""
    ranks, recipe, student = run.ranks, run.recipe.finetune, made.student
    loop = run.training(student, made.source)
    history = run.read_history(_SOURCE, loop.done)
    best = run.metrics.get("best seen", {"top1": 0.0, "step": 0})
    started = loop.done
    with run.phase("fine-tuning", recipe.steps) as phase, closing(loop.iteration):

        def report(record: Record) -> None:
            ranks.check_equal(student, f"after step {record['step']}")
            before = int(history[-1]["step"]) if history else 0
            history.append({**_SOURCE, **record})
            run.append_history(history[-1])
            done = int(record["step"])
            phase.show(record, (done - started) * recipe.batch_size)
            every = run.evaluate_every
            if every and done // every > before // every:
                seen = run.measure("latest", student)
                run.metrics.pop("latest", None)
                if seen is not None and seen.top1 > best["top1"]:
                    best.update(top1=seen.top1, step=done)
                    run.metrics["best seen"] = best
                    run.write_metrics()

        loop.run(report)
    return replace(made, history=[*made.history, *history])
