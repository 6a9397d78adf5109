"""What a run keeps and shows of the making of its images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from synq_fast.bank.batches import filtered
from synq_fast.bank.source import ImageSource
from synq_fast.optimize.loop import Record, Report
from synq_fast.storage.history import History

if TYPE_CHECKING:
    from synq_fast.engine.run import Run

# As many samples as have so many values, within bounds.
_VALUES, _FEWEST, _MOST = 2**20, 16, 256


def image_report(
    run: Run, show: Report, source: Mapping[str, object], log: History | None = None
) -> Report:
    """A report on making images that also keeps the records.

    Args:
        run: whose images.
        show: what else is done with each record.
        source: what all of them have beside their own fields.
        log: where they are kept; by default ``images.jsonl`` in the run's folder, which the first
            rank has.
    """
    if log is None and run.folder is not None:
        log = History(run.folder.path / "images.jsonl")
    if log is None:
        return show
    history, begun = log, False

    def report(record: Record) -> None:
        nonlocal begun
        show(record)
        # A loop that goes on says first where it is, and no losses.
        is_start = len(record) == 1
        if not begun:
            run.show_records(history.read(source, record["step"] - (not is_start)))
            begun = True
        if not is_start:
            history.append({**source, **record})
            run.show_records([{**source, **record}])

    return report


def show_images(run: Run, source: ImageSource, step: int = 0) -> None:
    """Show some images before and after the filter, and keep some of a generator's.

    Args:
        run: whose they are.
        source: the images.
        step: of training, where a generator learns on.
    """
    keeps = run.folder is not None and "generator" in run.recipe.stages
    if not run.ranks.is_first or not (keeps or run.board):
        return
    count = max(_FEWEST, min(_MOST, _VALUES // math.prod(run.teacher.input_shape)))
    images, labels = source.sample(count)
    if run.folder is not None and keeps:
        run.folder.write_samples(images, labels)
    if run.board is not None:
        before = images[: run.board.images]
        after = filtered(before, run.recipe.filter)
        for name, pixels in (("synthetic", before), ("low-pass", after)):
            run.board.add_images(name, run.teacher.denormalize(pixels).clamp(0, 1), step)
