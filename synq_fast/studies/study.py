"""What a study is: its fields are its options, its parts make rows, its rows make a page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from synq_fast.reporting.study_page import StudySection

if TYPE_CHECKING:
    from synq_fast.studies.workbench import Workbench


class Part(NamedTuple):
    """A piece of a study that is done as a whole, and not done again."""

    key: str
    """What tells it from the others."""
    make: Callable[[], Sequence[Any]]
    """Gives rows of the study's kind."""
    reads: tuple[str, ...] | None = None
    """The options that decide its rows; None: all of them."""


class Study(Protocol):
    """A frozen dataclass: its fields are its options."""

    name: ClassVar[str]
    question: ClassVar[str]
    row: ClassVar[type[Any]]
    """A frozen dataclass of JSON's values: what a row of the result holds."""
    needs: ClassVar[str]
    """Without which data it says nothing: "labels", "pictures", or "" where it needs none."""

    def parts(self, bench: Workbench) -> Iterator[Part]:
        """What is to be done, in order."""
        ...

    def findings(self, rows: Sequence[Any]) -> list[str]:
        """Sentences on what the rows say."""
        ...

    def sections(self, rows: Sequence[Any], bench: Workbench) -> list[StudySection]:
        """Charts and tables of the rows."""
        ...


class Spread(NamedTuple):
    """Several measurements of one thing."""

    mean: float
    low: float
    high: float
    """One standard deviation to each side; the mean itself for one measurement."""
    values: int
    """How many."""

    def __str__(self) -> str:
        """The mean and its standard deviation, with two decimals."""
        more = f" ± {self.high - self.mean:.2f}" if self.values > 1 else ""
        return f"{self.mean:.2f}{more}"


def spread(values: Iterable[float | None]) -> Spread:
    """Mean and standard deviation of what is there; NaN where there is nothing."""
    found = [value for value in values if value is not None]
    if not found:
        return Spread(math.nan, math.nan, math.nan, 0)
    mean = statistics.fmean(found)
    deviation = statistics.stdev(found) if len(found) > 1 else 0.0
    return Spread(mean, mean - deviation, mean + deviation, len(found))
