"""Results that are no times of columns: breakdowns, costs of switches, peak memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .rows import Comparison

Cell = str | float | None


@dataclass(frozen=True)
class Table:
    """Named rows of numbers; the columns' titles say their units."""

    suite: str
    title: str
    columns: tuple[str, ...]
    """The first names the rows."""
    rows: Sequence[tuple[Cell, ...]]
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse a row that does not fit.

        Raises:
            ValueError: A row has another number of cells than there are columns.
        """
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: {len(self.columns)} columns, but a row {row}")

    def text(self) -> str:
        """The table as aligned text, names to the left and numbers to the right."""
        cells = [self.columns, *(tuple(map(_shown, row)) for row in self.rows)]
        widths = [max(len(row[place]) for row in cells) for place in range(len(self.columns))]
        lines = [f"{self.suite}: {self.title}"]
        for row in cells:
            name, *numbers = (cell for cell in row)
            shown = [f"{c:>{w}}" for c, w in zip(numbers, widths[1:], strict=True)]
            lines.append("  ".join([f"  {name:<{widths[0]}}", *shown]).rstrip())
        return "\n".join([*lines, *([f"  {self.note}"] if self.note else [])])


def targets_table(row: Comparison, targets: Mapping[str, float]) -> Table:
    """How many times faster ours is than some columns, and how many it should be at least."""
    is_now = row.speed_ups()
    lines: list[tuple[Cell, ...]] = [
        (name, least, is_now[name], "holds" if is_now[name] >= least else "missed")
        for name, least in targets.items()
    ]
    title = f"{row.case}, targets [allocator: {row.allocator}]"
    return Table(row.suite, title, ("times faster than", "at least", "is", ""), lines)


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    size = abs(cell)
    return f"{cell:.{0 if size >= 100 else 1 if size >= 10 else 2}f}"
