"""What a run says in the end: the speed-up over each rival, and where we lose."""

from __future__ import annotations

from collections.abc import Sequence

from .rows import LARGE, Comparison, seconds

COMPILED = "torch.compile"


def row_line(row: Comparison) -> str:
    """Our time and the speed-up over each rival; just the times where no column is ours."""
    ours = row.our_columns()
    if not ours:
        return " | ".join(f"{name} {seconds(t.median)}" for name, t in row.timings.items())
    rivals = " | ".join(f"{ratio:.2f}x {name}" for name, ratio in row.speed_ups().items())
    return f"{ours[0]} {seconds(row.timings[ours[0]].median)}: {rivals}"


def losses(rows: Sequence[Comparison]) -> list[str]:
    """Rows of `LARGE` or more elements where torch.compile is faster than we are."""
    lines = []
    for row in rows:
        for name, ratio in row.speed_ups().items():
            if COMPILED in name and ratio < 1 and row.large:
                lines.append(f"{row.title}: {ratio:.2f}x {name}")
    return lines


def without_ours(rows: Sequence[Comparison]) -> list[str]:
    """Rows in which none of our backends could run, with the reasons."""
    lines = []
    for row in rows:
        reasons = {n: why for n, why in (row.omitted or {}).items() if n.startswith("ours")}
        if not row.our_columns() and reasons:
            lines.append(f"{row.title}: {'; '.join(f'{n}: {w}' for n, w in reasons.items())}")
    return lines


def summary(rows: Sequence[Comparison]) -> str:
    """The text below the tables."""
    lines = ["speed-up of ours over each rival (above 1 we are faster)"]
    for row in rows:
        lines += [f"  {row.title}", f"    {row_line(row)}"]
    lines += [
        "",
        *_block(f"slower than torch.compile at {LARGE:,} elements and more", losses(rows)),
    ]
    if any(row.limits for row in rows):
        over = [line for row in rows for line in row.over_limit()]
        lines += _block("calls that cost more than they may", over)
    absent = without_ours(rows)
    if absent:
        lines += _block("not measured", absent)
    return "\n".join(lines)


def _block(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return [f"{title}: none"]
    return [f"{title}:", *(f"  {entry}" for entry in entries)]
