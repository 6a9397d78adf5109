"""Results that are no times of columns: breakdowns, costs of switches, peak memory."""

from __future__ import annotations

from dataclasses import dataclass

Cell = str | float | None


@dataclass(frozen=True)
class Table:
    """Named rows of numbers; the columns' titles say their units."""

    suite: str
    title: str
    columns: tuple[str, ...]
    """The first names the rows."""
    rows: list[tuple[Cell, ...]]
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


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
