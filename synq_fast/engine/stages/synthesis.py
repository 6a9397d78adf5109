"""Images by optimizing pixels: a bank, shard by shard."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, fx, nn

from synq_fast.bank.assembly import BankAssembly, streams
from synq_fast.bank.batches import Batches
from synq_fast.bank.images import Bank, BankFolder, ImageBank
from synq_fast.bank.refreshed import RefreshedBatches
from synq_fast.bank.shards import Shards
from synq_fast.bank.source import WHOLE, BankSource, ImageSource
from synq_fast.engine.shown import image_report
from synq_fast.engine.stages.calibration import find_ranges
from synq_fast.engine.stages.stage import Made
from synq_fast.errors import RunFolderError
from synq_fast.storage.history import History
from synq_fast.synthesis.student import ImageStudent
from synq_fast.synthesis.synthesizer import Round

if TYPE_CHECKING:
    from synq_fast.engine.run import Run


def synthesis(run: Run, made: Made) -> Made:
    """Make the bank in the run's bank folder, or in memory."""
    bank = image_bank(run, run.bank_folder)
    recipe, valid = run.recipe, run.teacher.known_range()
    source = BankSource(bank, recipe.filter, run.seed, recipe.variety, valid)
    return replace(made, images=in_turns(run, source))


def in_turns(run: Run, source: BankSource) -> ImageSource:
    """A source whose bank is made again in turn with training, where the recipe says so."""
    return RefreshedSource(run, source) if run.recipe.synthesis.refresh.every else source


def image_bank(run: Run, folder: Path | None, again: Again | None = None) -> Bank:
    """The image bank, from the shards that are there and those that are missing.

    Args:
        run: whose images.
        folder: where they are kept; None: in memory alone.
        again: what they are made against, while the quantized network is trained.

    Raises:
        RunFolderError: ``again`` says that all are there, and some are missing.
    """
    recipe, ranks = run.recipe.synthesis, run.ranks
    synthesizer = run.synthesizer(folder, again.round if again else None)
    store = None
    if folder is not None:
        with ranks.first():
            store = BankFolder(folder, again.fingerprint if again else run.fingerprint(recipe))
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
    if missing and again is not None and again.found:
        raise RunFolderError(
            f"training goes on from a checkpoint in round {again.round.number} of its images, of "
            f"which {folder} lacks {len(missing)} of {len(counts)} shards, and the network that "
            f"they were made against is gone; delete the checkpoints (checkpoint.safetensors, "
            f"checkpoint.previous.safetensors) and resume to train again from the first images"
        )
    title = "synthesis" if again is None else "refresh"
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
    steps = synthesizer.steps
    with run.phase(title, len(own) * steps) as phase:
        report = phase.in_turn(steps, recipe.batch_size)
        for index in own:
            for earlier in range(remembered, index if synthesizer.follows else 0):
                shard = shards.found[earlier]
                synthesizer.remember(shard.images, shard.labels)
                remembered = earlier + 1
            source = {"stage": title, "batch": index}
            if again is not None:
                source["round"] = again.round.number
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


@dataclass(frozen=True)
class Again:
    """What images are made against, while the quantized network is trained."""

    round: Round
    fingerprint: str
    """Of all that the network depends on."""
    found: bool
    """An earlier process has finished them."""


@dataclass
class RefreshedSource:
    """A bank that is made again in turn with training, against the network as it is then."""

    run: Run
    source: BankSource
    """Of the last round."""

    def batches(
        self,
        size: int,
        crop_scale: tuple[float, float] = (1.0, 1.0),
        part: slice = WHOLE,
        student: nn.Module | None = None,
    ) -> Batches:
        """Crops of the bank's images, filtered; with a student, in rounds."""
        batches = self.source.batches(size, crop_scale, part)
        if student is None:
            return batches
        assert isinstance(student, fx.GraphModule)

        def renew(number: int, found: bool) -> Batches:
            self._renew(student, number, found)
            return self.source.batches(size, crop_scale, part)

        return RefreshedBatches(batches, self.run.recipe.synthesis.refresh.every, renew)

    def _renew(self, student: fx.GraphModule, number: int, found: bool) -> None:
        run, refresh = self.run, self.run.recipe.synthesis.refresh
        folder = None if run.output is None else run.output / f"bank-{number:03d}"
        before = None if refresh.restart or found else self.source.bank
        round_ = Round(number, ImageStudent(student, run.structure), before)
        again = Again(round_, run.student_fingerprint(student), found)
        self.source = replace(self.source, bank=image_bank(run, folder, again))
        if refresh.ranges and not found:
            find_ranges(run, student, self.source)

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Images from all over the bank."""
        return self.source.sample(count)
