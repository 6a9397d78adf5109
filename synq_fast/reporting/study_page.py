"""The page of a study: what it asked, what it found, how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synq_fast.reporting.figures import chart as charts
from synq_fast.reporting.figures.chart import Chart
from synq_fast.reporting.figures.plot import Figures
from synq_fast.reporting.page import filled, write_text_page
from synq_fast.reporting.tables import Table


@dataclass(frozen=True)
class StudySection:
    """One aspect of what was found."""

    title: str
    text: str
    """What is seen, and how to read it."""
    charts: Sequence[Chart]
    table: Table | None = None


@dataclass(frozen=True)
class StudyPage:
    """What a page shows."""

    name: str
    question: str
    network: str
    findings: Sequence[str]
    """Sentences."""
    sections: Sequence[StudySection]
    setting: Mapping[str, str]
    """What the figures depend on."""
    recipe: str
    """TOML."""
    machine: Mapping[str, str]
    versions: Mapping[str, str | None]


def render_study(page: StudyPage) -> str:
    """The page as text; every name in it is escaped."""
    figures = Figures()
    sections = [
        {
            "section": each,
            "legend": found if len(found := charts.legend(each.charts)) > 1 else [],
            "panels": charts.panels(each.charts, figures),
        }
        for each in page.sections
    ]
    return filled("study.html", page=page, sections=sections)


def write_study(page: StudyPage, path: Path) -> Path:
    """Write a page, and return its path.

    Raises:
        StorageError: it cannot be written; a page that was there stays.
    """
    return write_text_page(render_study(page), path)
