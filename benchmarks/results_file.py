"""Result files: rows as JSON, with the device, driver, versions and commit they belong to."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import synq_fast

from . import harness
from .rows import Comparison, Timing
from .tables import Table


class ResultsError(ValueError):
    """A file that does not hold benchmark results."""


def environment(threads: int = harness.THREADS) -> dict[str, object]:
    """What a result depends on: device, driver, versions, threads, commit."""
    facts: dict[str, object] = {
        "device": str(harness.DEVICE),
        "processor": _processor(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "synq-fast": synq_fast.__version__,
    }
    # An installed package may lie inside somebody else's repository.
    if (Path(__file__).resolve().parent.parent / "CMakeLists.txt").exists():
        facts["commit"] = _output("git", "rev-parse", "HEAD")
        facts["uncommitted"] = bool(_output("git", "status", "--porcelain"))
    if harness.DEVICE.type == "cuda":
        facts["device"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
        facts["driver"] = _output(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
    return facts


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _output(*command: str) -> str | None:
    try:
        root = Path(__file__).resolve().parent
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write_file(
    comparisons: Sequence[Comparison],
    path: Path,
    threads: int = harness.THREADS,
    tables: Sequence[Table] = (),
) -> None:
    """Write all rows and tables as one JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(row) for row in comparisons]
    content: dict[str, Any] = {"environment": environment(threads), "rows": rows}
    if tables:
        content["tables"] = [asdict(table) for table in tables]
    path.write_text(json.dumps(content, indent=2) + "\n")


def write_results(
    comparisons: Sequence[Comparison],
    folder: Path,
    threads: int = harness.THREADS,
    tables: Sequence[Table] = (),
) -> list[Path]:
    """Write one JSON file for each suite and return the paths."""
    paths = []
    suites = [row.suite for row in comparisons] + [table.suite for table in tables]
    for suite in dict.fromkeys(suites):
        path = folder / f"{suite}-{harness.DEVICE.type}.json"
        rows = [row for row in comparisons if row.suite == suite]
        write_file(rows, path, threads, [table for table in tables if table.suite == suite])
        paths.append(path)
    return paths


def read_file(path: Path) -> tuple[dict[str, Any], list[Comparison]]:
    """Read what `write_file` wrote: the environment and the rows.

    Raises:
        ResultsError: The file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text())
        rows = [_row(dict(fields)) for fields in content["rows"]]
        return dict(content["environment"]), rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path} does not hold benchmark results: {error}") from error


def _row(fields: dict[str, Any]) -> Comparison:
    fields["timings"] = {name: Timing(**values) for name, values in fields["timings"].items()}
    if fields.get("limits"):
        fields["limits"] = {name: tuple(value) for name, value in fields["limits"].items()}
    return Comparison(**fields)
