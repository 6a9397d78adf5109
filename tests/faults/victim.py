"""A small run that tells, in memory shared with its parent, how far it is, and that can be killed.

The parent forks it, so that a run costs no start of torch; SIGKILL ends it like any process.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from synq_fast.bank.batches import BatchSource
from synq_fast.finetune import training
from synq_fast.finetune.reconstruction import Reconstruction, iteration
from synq_fast.finetune.training import Training
from synq_fast.runtime.progress import Reporter
from synq_fast.storage import files
from tests.tiny import run

PHASES = ("", "centers", "synthesis", "calibration", "reconstruction", "fine-tuning")
OVERRIDES = {
    "synthesis.images": 4,
    "synthesis.batch_size": 2,
    "synthesis.centers.weight": 0.1,
    "synthesis.centers.steps": 4,
    "synthesis.steps": 4,
    "quantization.calibration_batches": 4,
    "quantization.learn_ranges": True,
    "blocks.images": 8,
    "blocks.steps": 5,
    "blocks.batch_size": 4,
    "finetune.perturbation.weight": 0.0,
    "finetune.steps": 8,
}
# A moment in which a kill can land, also in phases that take no time on so small a model.
PAUSE = 0.004


class Progress:
    """Numbers that outlive the process: phase, whether it is saving, steps begun per phase."""

    def __init__(self) -> None:
        self._numbers = np.frombuffer(mmap.mmap(-1, 64), np.int64)

    def clear(self) -> None:
        self._numbers[:] = 0

    @property
    def phase(self) -> str:
        """The phase of the work, or ``saving`` while a file is being replaced."""
        return "saving" if self._numbers[1] else PHASES[self._numbers[0]]

    @property
    def steps(self) -> dict[str, int]:
        """Steps begun in each phase."""
        return dict(zip(PHASES[1:], self._numbers[2:7].tolist(), strict=True))

    def enter(self, phase: str) -> None:
        self._numbers[0] = PHASES.index(phase)

    def save(self, saving: bool) -> None:
        self._numbers[1] = saving

    def step(self) -> None:
        self._numbers[1 + self._numbers[0]] += 1
        time.sleep(PAUSE)


def fork(work: Callable[[], None]) -> int:
    """Run ``work`` in a child process; returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def work(folder: Path) -> None:
    """Start or resume the run in ``folder``."""
    resume = (folder / "run.json").exists()
    run(recipe="synq-fast-digits", output=folder, resume=resume, overrides=OVERRIDES)


def start(folder: Path, progress: Progress, die_at: int = -1) -> int:
    """Start or resume the run in ``folder``; it kills itself at the file event ``die_at``."""

    def watched_work() -> None:
        with (folder.parent / "errors.txt").open("a") as errors:
            os.dup2(errors.fileno(), 2)
        _watch(progress)
        _number_file_events(folder, die_at)
        work(folder)

    progress.clear()
    return fork(watched_work)


def _watch(progress: Progress) -> None:
    training.LOG_EVERY, iteration.LOG_EVERY = 3, 2
    phase, replace = Reporter.phase, files._replace
    adam, batch = torch.optim.Adam.step, BatchSource.inputs

    @contextmanager
    def watched_phase(self: Reporter, title: str, total: int) -> Iterator[object]:
        progress.enter(title)
        with phase(self, title, total) as shown:
            yield shown
        progress.enter("")

    def watched_replace(*args: object) -> None:
        progress.save(True)
        time.sleep(PAUSE / 4)
        replace(*args)
        time.sleep(PAUSE / 4)
        progress.save(False)

    def watched(prepare: Callable[..., object]) -> Callable[..., object]:
        def prepared(self: object, step: int) -> object:
            progress.step()
            return prepare(self, step)

        return prepared

    def watched_adam(self: torch.optim.Adam, *args: object) -> object:
        if progress.phase in ("centers", "synthesis"):
            progress.step()
        return adam(self, *args)

    def watched_batch(self: BatchSource, step: int) -> object:
        if progress.phase == "calibration":
            progress.step()
        return batch(self, step)

    Reporter.phase, files._replace = watched_phase, watched_replace
    for work in (Reconstruction, Training):
        work.prepare = watched(work.prepare)
    torch.optim.Adam.step, BatchSource.inputs = watched_adam, watched_batch


def _number_file_events(folder: Path, die_at: int) -> None:
    """Write the events to ``events.txt`` beside the folder, and die before number ``die_at``."""
    events = (folder.parent / "events.txt").open("w", buffering=1)
    flush, rename, unlink = os.fsync, os.replace, Path.unlink
    count = 0

    def event(text: str) -> None:
        nonlocal count
        events.write(f"{text}\n")
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def noted_flush(descriptor: int) -> None:
        event(
            f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name.split('.safetens')[0]}"
        )
        flush(descriptor)

    def noted_rename(source: Path, target: Path) -> None:
        event(f"rename to {target.name}")
        rename(source, target)

    def noted_unlink(self: Path, missing_ok: bool = False) -> None:
        if self.exists():
            event(f"unlink {self.name}")
        unlink(self, missing_ok)

    os.fsync, os.replace, Path.unlink = noted_flush, noted_rename, noted_unlink
