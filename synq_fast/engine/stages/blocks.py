"""Reconstruction: the quantized model trained block by block, from the image to the logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, fx, nn

from synq_fast.engine.stages.stage import Made
from synq_fast.errors import ModelError, RecipeError
from synq_fast.finetune.data_parallel import batch_mean, part_of_batch
from synq_fast.finetune.reconstruction import (
    BlockValues,
    Cache,
    NetworkValues,
    Reconstruction,
    TrainedBlock,
    curvature_weights,
    reconstruction_loop,
)
from synq_fast.graph.blocks import Block, subnetwork
from synq_fast.graph.norm_folding import folded_like
from synq_fast.optimize.loop import Loop, Record
from synq_fast.quant import folded, held_weights
from synq_fast.storage.run_folder import HistoryRecord

if TYPE_CHECKING:
    from synq_fast.engine.run import Run


def blocks(run: Run, made: Made) -> Made:
    """Train each block on what the blocks before it give, and measure the model as it is then.

    A layer that several blocks call is trained in the first of them alone. Training it again would
    undo what the first block, whose values the later ones read, was fitted to; one block from its
    first call to its last could be the whole network. The later blocks are trained around it.
    """
    recipe, cuts = run.recipe.blocks, run.structure.blocks
    if recipe.steps == 0:
        return made
    if not cuts:
        raise ModelError(
            "the network cannot be cut into blocks: no value of it belongs to single images alone; "
            "take a recipe without the stage blocks"
        )
    if recipe.memory == "files" and run.values_folder is None:
        raise RecipeError(
            'blocks.memory = "files" needs a folder: name one with --output (output=), or set '
            'blocks.memory = "auto"'
        )
    last = cuts[-1].entry
    like = folded_like(run.graph, made.student)
    teacher = folded(like, {name for block in cuts for name in (block.entry, block.exit)})
    cache = Cache(recipe.memory, run.device, run.values_folder)
    values = NetworkValues(
        teacher,
        made.student,
        cuts,
        lambda: cache.filled(recipe.images, _images(run, made)),
        cache,
        recipe.batch_size,
        ends=recipe.global_weight > 0,
        precision=run.recipe.finetune.precision,
    )
    history = list(made.history)
    finished: set[nn.Module] = set()
    with run.phase("reconstruction", len(cuts) * recipe.steps) as phase:
        show = phase.in_turn(recipe.steps, recipe.steps * recipe.batch_size)
        for index, block in enumerate(cuts):
            part = subnetwork(made.student, block.entry, block.exit)
            trained = TrainedBlock(part, recipe.rounding, finished)
            finished.update(trained.modules)
            if not trained.modules:
                show({"step": recipe.steps})
                continue
            far = recipe.global_weight > 0 and last not in (block.entry, block.exit)
            rest = subnetwork(teacher, block.exit, last) if far else None
            work = Reconstruction(
                trained,
                partial(values.of, index),
                recipe,
                seed=run.seed,
                index=index,
                device=run.device,
                rest=rest,
                curvature=partial(_curvature, run, part, teacher, block, cuts[-1].exit)
                if recipe.curvature
                else None,
                precision=run.recipe.finetune.precision,
            )
            loop = _loop(run, work, run.student_fingerprint(made.student))
            if loop.resume(run.ranks):
                show({"step": loop.done})
            source = {"stage": "blocks", "block": block.exit}
            records = run.read_history(source, loop.done)

            def report(
                record: Record,
                source: dict[str, str] = source,
                records: list[HistoryRecord] = records,
            ) -> None:
                records.append({**source, **record})
                run.append_history(records[-1])
                show(record)

            loop.run(report)
            history += records
            trained.harden()
    run.ranks.check_equal(made.student, "after reconstruction")
    if "reconstructed" not in run.metrics:
        run.measure("reconstructed", made.student)
        run.write_metrics()
    return replace(made, history=history)


def _curvature(
    run: Run,
    part: fx.GraphModule,
    teacher: fx.GraphModule,
    block: Block,
    logits: str,
    values: BlockValues,
) -> Tensor:
    """The weights of a block's distances, the same on every rank."""
    rest = nn.Identity() if block.exit == logits else subnetwork(teacher, block.exit, logits)
    with held_weights(part):
        weights = curvature_weights(
            values,
            part,
            rest,
            batch_size=run.recipe.blocks.batch_size,
            device=run.device,
            precision=run.recipe.finetune.precision,
        )
    return run.ranks.from_first(weights.cpu).to(run.device)


def _loop(run: Run, work: Reconstruction, fingerprint: str) -> Loop:
    ranks, size = run.ranks, run.recipe.blocks.batch_size
    work.part = part_of_batch(ranks, size, "blocks")
    work.reduce = batch_mean(ranks, work.parameters, work.part, size)
    return reconstruction_loop(
        work,
        checkpoint=run.checkpoint(f"block-{work.index:03d}"),
        fingerprint=fingerprint,
    )


def _images(run: Run, made: Made) -> Iterator[Tensor]:
    """Batches of the source, each image in one crop."""
    recipe = run.recipe.blocks
    batches = made.source.batches(recipe.batch_size, recipe.crop_scale)
    with closing(batches):
        for start in range(0, recipe.images, recipe.batch_size):
            images, _ = batches(start // recipe.batch_size)
            yield images[: recipe.images - start]
