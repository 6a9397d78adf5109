"""What a study found, and the files that say it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from synq_fast.reporting.figures.chart import Chart, write_picture
from synq_fast.reporting.page import check_available
from synq_fast.reporting.study_page import StudyPage, write_study
from synq_fast.storage.files import storage_errors, write_text

GROUPS = ("parts", "other parts")
"""Lists of a study's file: what was asked for last, and what was before."""


@dataclass(frozen=True)
class FinishedPart:
    """A part of a study that is done."""

    key: str
    fingerprint: str
    """Of all that it depends on."""
    seconds: float
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class StudyResult:
    """What ``study`` found."""

    name: str
    question: str
    network: str
    setting: Mapping[str, str]
    """What the figures depend on, in words."""
    findings: tuple[str, ...]
    """Sentences, made from the rows."""
    rows: tuple[Any, ...]
    """Of the study's own kind; each field says what it is."""
    page: StudyPage = field(repr=False)
    charts: tuple[Chart, ...] = field(repr=False)
    page_path: Path | None = None
    """Where the page was written."""

    def table(self) -> str:
        """The rows as Markdown; lists of numbers are left to the JSON file."""
        if not self.rows:
            return ""
        names = [f.name for f in fields(self.rows[0])]
        names = [n for n in names if not isinstance(getattr(self.rows[0], n), list | tuple)]
        lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
        lines += [
            f"| {' | '.join(_shown(getattr(row, name)) for name in names)} |" for row in self.rows
        ]
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        """The findings and the table."""
        said = "\n".join(f"- {sentence}" for sentence in self.findings)
        return f"{self.network}: {self.question}\n\n{said}\n\n{self.table()}"

    def write(self, folder: Path) -> Path:
        """Write table, picture and page beside the JSON file; returns the page's path.

        Raises:
            ArgumentError: matplotlib or Jinja2 are not installed (extra ``report``).
            StorageError: they cannot be written.
        """
        check_available()
        write_text(folder / f"{self.name}.md", str(self))
        title = f"{self.network}: {self.name}"
        write_picture(self.charts, folder / f"{self.name}.png", title)
        return write_study(self.page, folder / f"{self.name}.html")


def write_parts(
    path: Path,
    about: Mapping[str, Any],
    asked: Sequence[FinishedPart],
    kept: Mapping[str, FinishedPart],
) -> None:
    """Write what is done so far.

    Args:
        path: the JSON file.
        about: what the study is, and what it depends on.
        asked: the parts that were asked for.
        kept: these and others by their fingerprint, e.g. of other options, which stay as well.

    Raises:
        StorageError: it cannot be written.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    now = {part.fingerprint for part in asked}
    others = [part for mark, part in kept.items() if mark not in now]
    lists = []
    for group, parts in zip(GROUPS, (asked, others), strict=True):
        # A part a line, so that a file of hundreds of rows can be read and compared.
        lines = ",\n    ".join(json.dumps(asdict(part)) for part in parts)
        lists.append(f'  "{group}": [\n    {lines}\n  ]')
    head = json.dumps(about, indent=2)[:-2]
    write_text(path, head + ",\n" + ",\n".join(lists) + "\n}\n")


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
