"""What a long run shows: bars on a terminal, plain lines elsewhere, nothing when not wanted."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from synq_fast.errors import SynqFastWarning

_PLAIN_EVERY = 5.0
_AT_ONCE = 0.1


def _values(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """A time in the unit that people would use."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{_rate(seconds / size)} {unit}"
    return f"{seconds:.0f} s"


class Phase:
    """One phase of a run, e.g. the synthesis, with a known number of steps."""

    def __init__(self, title: str, total: int, bar: tuple[Progress, TaskID] | None, plain: bool):
        """Show ``title`` and progress towards ``total``."""
        self.title, self.total, self._bar, self._plain = title, total, bar, plain
        self._started = self._shown = time.monotonic()
        self._first: tuple[int, float] | None = None
        """Steps and seconds that the estimate counts from."""

    def update(self, done: int, values: Mapping[str, float], images: int = 0) -> None:
        """Show progress.

        Args:
            done: steps done so far.
            values: latest losses by name.
            images: images processed in this process so far, for the rate.
        """
        now = time.monotonic()
        text = _values(values)
        elapsed = now - self._started
        if self._first is None:
            # A resumed phase begins with what was done before.
            self._first = (done, elapsed) if elapsed < _AT_ONCE else (0, 0.0)
        if images:
            text += f"  {_rate(images / max(elapsed, 1e-9))} images/s"
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=done, values=text)
        elif self._plain and (now - self._shown >= _PLAIN_EVERY or done == self.total):
            self._shown = now
            took = duration(elapsed)
            first, before = self._first
            if first < done < self.total:
                left = (elapsed - before) / (done - first) * (self.total - done)
                took += f", about {duration(left)} left"
            print(f"{self.title}: {done}/{self.total}  {text}  {took}", file=sys.stderr)

    def show(self, record: Mapping[str, float], images: int = 0) -> None:
        """Show a record: its ``step``, and what it says of losses."""
        losses = {n: value for n, value in record.items() if n not in ("step", "learning_rate")}
        self.update(int(record["step"]), losses, images)

    def in_turn(self, steps: int, images: int = 0) -> Callable[[Mapping[str, float]], None]:
        """A report for optimizations that run one after the other.

        Args:
            steps: steps of each.
            images: images that each makes, or works on in all of its steps.
        """
        finished = 0

        def report(record: Mapping[str, float]) -> None:
            nonlocal finished
            step = int(record["step"])
            done = finished + step
            self.show({**record, "step": done}, done * images // steps)
            if step == steps:
                finished += steps

        return report


class Reporter:
    """Opens phases and prints lines between them."""

    def __init__(self, show: bool = True) -> None:
        """Bars where standard error is a terminal, plain lines elsewhere, nothing if not show."""
        self.show = show
        self.console = Console(stderr=True)
        self._bars: Progress | None = None

    def line(self, text: str) -> None:
        """Print a line."""
        if self.show:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Phase]:
        """A phase of ``total`` steps, or one within another."""
        if not self.show or not self.console.is_terminal:
            yield Phase(title, total, None, self.show)
            return
        if self._bars is not None:
            task = self._bars.add_task(title, total=total, values="")
            try:
                yield Phase(title, total, (self._bars, task), False)
            finally:
                self._bars.remove_task(task)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            self._bars = progress
            try:
                task = progress.add_task(title, total=total, values="")
                yield Phase(title, total, (progress, task), False)
            finally:
                self._bars = None


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print this package's warnings as sentences, each time, and others as Python does."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", SynqFastWarning)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if issubclass(category, SynqFastWarning):
                print(f"synq-fast: warning: {message}", file=sys.stderr)
            else:
                others(message, category, *where)

        # The place of a warning is only passed on, whatever its arguments are.
        warnings.showwarning = show  # type: ignore[assignment]
        yield
