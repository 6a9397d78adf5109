"""Reconstruction: the quantized model trained block by block, from the image to the logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from synq_fast.engine.stages.stage import Made
from synq_fast.finetune.data_parallel import BatchMean, part_of_batch
from synq_fast.finetune.reconstruction import (
    BlockValues,
    Cache,
    Reconstruction,
    TrainedBlock,
    reconstruction_loop,
)
from synq_fast.finetune.reconstruction.activations import in_parts
from synq_fast.graph.blocks import Block, subnetwork
from synq_fast.quant import folded, held_weights

if TYPE_CHECKING:
    from synq_fast.engine.run import Run


def blocks(run: Run, made: Made) -> Made:
    """Train each block on what the blocks before it give, then hand its own values on."""
    recipe, student = run.recipe.blocks, made.student
    if recipe.steps == 0:
        return made
    cuts = run.structure.blocks
    folder = run.folder.path / "values" if run.folder is not None else None
    cache = Cache(recipe.memory, run.device, folder)
    images = cache.filled(recipe.images, _images(run, made))
    teacher = folded(run.graph, {block.exit for block in cuts})
    last = cuts[-1].entry
    ends = _through(run, cache, subnetwork(teacher, cuts[0].entry, last), images)
    quantized = given = images
    with run.phase("reconstruction", len(cuts) * recipe.steps) as phase:
        report = phase.in_turn(recipe.steps, recipe.batch_size)
        for index, block in enumerate(cuts):
            target = _through(run, cache, subnetwork(teacher, block.entry, block.exit), given)
            part = subnetwork(student, block.entry, block.exit)
            far = recipe.global_weight > 0 and block.exit != last and block != cuts[-1]
            values = BlockValues(quantized, given, target, ends if far else None)
            rest = subnetwork(teacher, block.exit, last) if far else None
            _reconstruct(run, part, values, index, rest, report)
            if block != cuts[-1]:
                with held_weights(part):
                    quantized = _through(run, cache, part, quantized)
                given = target
    run.measure("reconstructed", student)
    run.write_metrics()
    return made


def _reconstruct(run: Run, part: fx.GraphModule, values: BlockValues, index: int, rest: fx.GraphModule | None, report) -> None:
    recipe, ranks = run.recipe.blocks, run.ranks
    block = TrainedBlock(part, recipe.rounding)
    if not block.layers:
        return
    own = part_of_batch(ranks, recipe.batch_size)
    work = Reconstruction(
        block,
        values,
        recipe,
        seed=run.seed,
        index=index,
        device=run.device,
        rest=rest,
        part=own,
    )
    if ranks.size > 1:
        share = (own.stop - own.start) / recipe.batch_size
        work.reduce = BatchMean(ranks, work.parameters, share)
    loop = reconstruction_loop(
        work,
        checkpoint=run.checkpoint(f"block-{index:03d}"),
        fingerprint=run.fingerprint(run.recipe, run.bits),
    )
    if loop.resume(ranks):
        report({"step": loop.done})
    loop.run(report)
    block.harden()


def _images(run: Run, made: Made) -> Iterator[Tensor]:
    """The images of the stage: batches of the source, each cropped once."""
    recipe = run.recipe.blocks
    batches = made.source.batches(recipe.batch_size, recipe.crop_scale)
    with closing(batches):
        for start in range(0, recipe.images, recipe.batch_size):
            images, _ = batches(start // recipe.batch_size)
            yield images[: recipe.images - start]


def _through(run: Run, cache: Cache, network: fx.GraphModule, values: Tensor) -> Tensor:
    size = run.recipe.blocks.batch_size
    return cache.filled(len(values), in_parts(network, values, size, run.device))
