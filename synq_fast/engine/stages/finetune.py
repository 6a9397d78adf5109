"""End-to-end training of the quantized model."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from synq_fast.engine.stages.stage import Made
from synq_fast.finetune.data_parallel import BatchMean, part_of_batch
from synq_fast.finetune.training import Training, training_loop
from synq_fast.optimize.loop import Record

if TYPE_CHECKING:
    from synq_fast.engine.run import Run


def finetune(run: Run, made: Made) -> Made:
    """Train the student, and measure it on the way where that is asked for."""
    ranks, recipe, student = run.ranks, run.recipe.finetune, made.student
    part = part_of_batch(ranks, recipe.batch_size)
    share = (part.stop - part.start) / recipe.batch_size
    step = run.step(student)
    batches = made.source.batches(recipe.batch_size, recipe.crop_scale, part)
    mean = BatchMean(ranks, step.parameters, share) if ranks.size > 1 else None
    loop = training_loop(
        Training(step, student, batches, recipe, reduce=mean),
        checkpoint=run.checkpoint("checkpoint"),
        fingerprint=run.fingerprint(run.recipe, run.bits),
    )
    loop.resume(ranks)
    history = run.read_history(loop.done)
    best = run.metrics.get("best seen", {"top1": 0.0, "step": 0})
    started = loop.done
    with run.phase("fine-tuning", recipe.steps) as phase, closing(batches):

        def report(record: Record) -> None:
            ranks.check_equal(student, f"after step {record['step']}")
            before = int(history[-1]["step"]) if history else 0
            history.append(record)
            run.append_history(record)
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
    return replace(made, history=history)
