"""Which of the GPU targets hold, from the files that gpu_check.sh writes.

python -m benchmarks.targets benchmarks/results/*-cuda.json
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import summary
from .results_file import ResultsError, read_file
from .rows import Comparison

MEBIBYTE = 1 << 20
LARGE_BYTES = 64 * MEBIBYTE
OF_COPY, OF_COPY_LOW_PASS = 0.85, 0.60
LOW_PASS_CASE = ("256", "3", "224", "224")
# These do more arithmetic for a byte than a copy hides.
NOT_STREAMING = (
    "low_pass",
    "search_range",
    "patch_similarity_entropy",
    "inter_head_similarity_loss",
)


@dataclass(frozen=True)
class Target:
    """A target, how many things it was checked on, and the ones that miss it."""

    name: str
    checked: int
    missed: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """One line, and one for each miss."""
        if self.checked == 0:
            return f"not measured  {self.name}"
        held = self.checked - len(self.missed)
        state = "missed" if self.missed else "holds"
        lines = [f"{state:<12}  {self.name} ({held} of {self.checked})"]
        return "\n".join([*lines, *(f"                {line}" for line in self.missed)])


def targets(rows: Sequence[Comparison], verdicts: Sequence[dict[str, Any]]) -> list[Target]:
    """Judge every target."""
    streaming = [
        row
        for row in rows
        if row.copy and (row.bytes_moved or 0) >= LARGE_BYTES and row.suite not in NOT_STREAMING
    ]
    low_pass = [row for row in rows if row.copy and row.suite == "low_pass" and _is_large(row)]
    compiled = [row for row in rows if any(summary.COMPILED in name for name in row.speed_ups())]
    exact = [verdict for verdict in verdicts if verdict["exact"]]
    limited = [row for row in rows if row.limits]
    over = [line for row in limited for line in row.over_limit()]
    return [
        _bandwidth(f"{OF_COPY:.0%} of the copy bandwidth from 64 MiB on", streaming, OF_COPY),
        _bandwidth(
            f"low_pass {'x'.join(LOW_PASS_CASE)}: {OF_COPY_LOW_PASS:.0%} of the copy bandwidth",
            low_pass,
            OF_COPY_LOW_PASS,
        ),
        Target("nothing slower than torch.compile", len(compiled), _slower(compiled)),
        Target("same bits on every backend", len(exact), _wrong(exact)),
        Target("every op equals the reference", len(verdicts), _wrong(verdicts)),
        Target(
            "every op is captured in a CUDA graph",
            len(verdicts),
            [_verdict(v, "not_captured") for v in verdicts if v["not_captured"]],
        ),
        Target("calls cost no more than they may", len(limited), over),
    ]


def _is_large(row: Comparison) -> bool:
    numbers = " ".join(re.findall(r"\d+", row.case))
    return f" {' '.join(LOW_PASS_CASE)} " in f" {numbers} "


def _bandwidth(name: str, rows: Sequence[Comparison], least: float) -> Target:
    missed, checked = [], 0
    for row in rows:
        for column in row.our_columns()[:1]:
            checked += 1
            share = row.of_copy(column) or 0.0
            if share < least:
                missed.append(f"{row.title}: {column} {share:.2f}")
    return Target(name, checked, missed)


def _slower(rows: Sequence[Comparison]) -> list[str]:
    missed = []
    for row in rows:
        worst = min(r for n, r in row.speed_ups().items() if summary.COMPILED in n)
        if worst < 1:
            missed.append(f"{row.title}: {worst:.2f}x")
    return missed


def _wrong(verdicts: Sequence[dict[str, Any]]) -> list[str]:
    return [_verdict(verdict, "wrong") for verdict in verdicts if verdict["wrong"]]


def _verdict(verdict: dict[str, Any], key: str) -> str:
    return f"{verdict['op']} ({verdict['backend']}): {verdict[key]}"


def read(files: Sequence[Path]) -> tuple[list[Comparison], list[dict[str, Any]]]:
    """Read rows and the verdicts of `every_op`; other files are named and left out."""
    rows: list[Comparison] = []
    verdicts: list[dict[str, Any]] = []
    for file in files:
        try:
            found = json.loads(file.read_text()).get("verdicts")
            if found is None:
                rows += read_file(file)[1]
            else:
                verdicts += found
        except (OSError, ValueError, AttributeError) as error:
            reason = error if isinstance(error, ResultsError) else f"{file}: {error}"
            print(f"left out: {reason}", file=sys.stderr)
    return rows, verdicts


def main(arguments: Sequence[str] | None = None) -> int:
    """Print each target; 1 if one is missed or could not be judged."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", nargs="+", type=Path, help="the files of one GPU")
    judged = targets(*read(parser.parse_args(arguments).results))
    for target in judged:
        print(target.text)
    return 1 if any(target.missed or not target.checked for target in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
