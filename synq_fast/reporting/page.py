"""The HTML page: one file, no network, no file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from synq_fast.reporting import sections, tables
from synq_fast.reporting.contents import Images, Report, RunReport
from synq_fast.reporting.figures import charts
from synq_fast.reporting.figures.plot import Figures
from synq_fast.reporting.maps import Maps
from synq_fast.runtime.extras import needs
from synq_fast.storage.files import storage_errors, write_text

_TEMPLATE = Path(__file__).with_name("template")


def check_available() -> None:
    """Refuse where a library is missing.

    Raises:
        MissingExtraError: with how to install it.
    """
    needs("report", "a report")


def write_page(report: Report, path: Path) -> Path:
    """Write a page, and return its path.

    Raises:
        StorageError: it cannot be written; a page that was there stays.
    """
    return write_text_page(render(report), path)


def render(report: Report) -> str:
    """The page as text; every name in it is escaped."""
    return filled("page.html", report=report, **_context(report))


def write_text_page(text: str, path: Path) -> Path:
    """Write the text of a page, and return its path.

    Raises:
        StorageError: it cannot be written; a page that was there stays.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def filled(template: str, **values: Any) -> str:
    """A template with its values, style and script; every name in it is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((_TEMPLATE / n).read_text("utf-8") for n in ("page.css", "sort.js"))
    return environment.get_template(template).render(style=style, script=script, **values)


def _context(report: Report) -> dict[str, Any]:
    figures = Figures()
    several = len(report.runs) > 1
    return {
        "several": several,
        "facts": [(run.bits, sections.facts(run)) for run in report.runs],
        "extreme": max(
            (300 / a.count for r in report.runs for a in r.accuracies if a.top1 in (0, 100)),
            default=None,
        ),
        "covered": sections.covered(report),
        "accuracy_panels": sections.accuracy_panels(report, figures),
        "accuracy_table": sections.accuracy_table(report),
        "image_sets": [_image_context(images, figures) for images in report.images],
        "runs": [_run_context(run, len(report.runs), figures) for run in report.runs],
        "time_panels": [
            figures.panel(
                run.bits,
                charts.times(run.seconds),
                f"Seconds of each phase of {run.bits}: "
                + ", ".join(f"{p} {s:.1f}" for p, s in run.seconds.items()),
                f"{tables.duration(sum(run.seconds.values()))} in all",
            )
            for run in report.runs
            if run.seconds
        ],
        "time_table": sections.time_table(report),
        "series": list(range(1, 7)),
    }


def _image_context(images: Images, figures: Figures) -> dict[str, Any]:
    heats, low, high = sections.spectrum_tiles(images)
    names = ", ".join(each.title for each in images.spectra)
    found: dict[str, Any] = {
        "images": images,
        "large": sections.is_large(images.before),
        "tiles": sections.image_tiles(images),
        "losses": sections.loss_groups(images.records, ", ".join(images.runs), figures),
        "heats": heats,
        "low": low,
        "high": high,
        "legend": [(each.title, n) for n, each in enumerate(images.spectra, 1)],
        "radial": figures.panel(
            "Along the distance from zero",
            charts.spectra(images.spectra, images.cutoff),
            f"Mean log-magnitude over spatial frequency of {names}",
        ),
        "difficulty": None,
    }
    if images.difficulty is not None:
        above = None
        if images.threshold is not None:
            above = int((images.difficulty >= images.threshold).sum())
        found["above"] = above
        found["judged"] = len(images.difficulty)
        found["difficulty"] = figures.panel(
            "Difficulty of the images",
            charts.difficulties(images.difficulty, images.threshold),
            f"Histogram of the difficulty of {len(images.difficulty)} synthetic images; median "
            f"{float(images.difficulty.median()):.3g}"
            + (f", {above} at or above {images.threshold:g}" if above is not None else ""),
        )
    return found


def _run_context(run: RunReport, runs: int, figures: Figures) -> dict[str, Any]:
    found: dict[str, Any] = {
        "run": run,
        "losses": sections.loss_groups(run.records, run.bits, figures),
        "maps": None,
        "tables": [],
        "histograms": [],
    }
    if run.layers is not None:
        found["tables"] = [tables.weight_table(run.layers), tables.activation_table(run.layers)]
        groups, found["left_out"] = sections.histogram_groups(run, runs, figures)
        found["histograms"] = groups
    if run.maps is not None:
        found["maps"] = _map_context(run.bits, run.maps, runs, figures)
    return found


def _map_context(bits: str, maps: Maps, runs: int, figures: Figures) -> dict[str, Any]:
    seen = maps.similarity[~maps.similarity.isnan()]
    label = f"Histogram of the similarity of {len(seen)} pairs of maps of {bits}"
    if len(seen):
        label += f", median {float(seen.median()):.3f}, least {float(seen.min()):.3f}"
    return {
        "tiles": sections.map_tiles(maps, runs),
        "node": maps.node,
        "count": len(maps.similarity),
        "flat": len(maps.similarity) - len(seen),
        "median": float(seen.median()) if len(seen) else None,
        "large": sections.is_large(maps.images),
        "panel": figures.panel(
            "Similarity of the maps", charts.similarities(seen.clamp(0, 1)), label
        ),
    }
