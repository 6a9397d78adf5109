"""Images by optimizing pixels: a bank, shard by shard."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from synq_fast.bank.assembly import BankAssembly, streams
from synq_fast.bank.images import Bank, BankFolder, ImageBank
from synq_fast.bank.shards import Shards
from synq_fast.bank.source import BankSource
from synq_fast.engine.shown import image_report
from synq_fast.engine.stages.stage import Made
from synq_fast.storage.history import History

if TYPE_CHECKING:
    from synq_fast.engine.run import Run


def synthesis(run: Run, made: Made) -> Made:
    """Make the bank in the run's bank folder, or in memory."""
    bank = image_bank(run, run.bank_folder)
    return replace(made, images=BankSource(bank, run.recipe.filter, run.seed))


def image_bank(run: Run, folder: Path | None) -> Bank:
    """The image bank, from the shards that are there and those that are missing."""
    recipe, ranks = run.recipe.synthesis, run.ranks
    synthesizer = run.synthesizer(folder)
    store = None
    if folder is not None:
        with ranks.first():
            store = BankFolder(folder, run.fingerprint(recipe))
    counts = [
        min(recipe.batch_size, recipe.images - start)
        for start in range(0, recipe.images, recipe.batch_size)
    ]
    shape = run.teacher.input_shape
    size = 4 * recipe.images * math.prod(shape)
    streamed = streams(run.recipe.finetune.bank, size, run.device, store)
    if streamed:
        run.reporter.line(f"{size / 1e9:.1f} GB of images stream from {folder}")
    assembly = BankAssembly(counts, shape, run.device, streamed=streamed)
    shards = Shards(len(counts), store, ranks)
    for index in shards.found:
        synthesizer.forget(index)
        run.show_records(_history(folder, index).records() if folder else [])
    found = set(shards.found)
    missing = shards.missing()
    if missing and recipe.centers.weight:
        batches = -(-run.teacher.num_classes // recipe.batch_size)
        steps = len(ranks.mine(range(batches))) * recipe.centers.steps
        with run.phase("centers", steps) as phase:
            synthesizer.make_centers(phase.in_turn(recipe.centers.steps), ranks)
    own = ranks.mine(missing)
    if synthesizer.follows:
        # In order, and so by one rank, which looks at what it has itself.
        own = [i for i in range(len(counts)) if i not in shards.found] if ranks.is_first else []
    remembered = 0
    with run.phase("synthesis", len(own) * recipe.steps) as phase:
        report = phase.in_turn(recipe.steps, recipe.batch_size)
        for index in own:
            for earlier in range(remembered, index if synthesizer.follows else 0):
                shard = shards.found[earlier]
                synthesizer.remember(shard.images, shard.labels)
                remembered = earlier + 1
            source = {"stage": "synthesis", "batch": index}
            noted = image_report(run, report, source, _history(folder, index) if folder else None)
            shards.add(index, ImageBank(*synthesizer.batch(index, counts[index], noted)))
            synthesizer.forget(index)
        for index, shard in shards.gather():
            assembly.put(index, shard)
            if folder and index not in found and index not in own:
                run.show_records(_history(folder, index).records())
    return assembly.bank()


def _history(folder: Path, index: int) -> History:
    """The records of one batch of images, whichever rank makes it."""
    return History(folder / f"batch-{index:05d}.jsonl")
