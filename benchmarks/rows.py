"""One measured row of a suite: its columns' times and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass

# Below this a call's overhead decides.
LARGE = 65_536


@dataclass(frozen=True)
class Timing:
    """Seconds per call over the rounds of one column."""

    median: float
    fastest: float
    quartile_range: float
    rounds: int
    how: str = "wall clock"
    """The clock; on a GPU also whether a CUDA graph was timed, and on how many inputs."""

    def divided(self, works: int) -> Timing:
        """The time of one of several pieces of work that a call does."""
        return Timing(
            self.median / works,
            self.fastest / works,
            self.quartile_range / works,
            self.rounds,
            self.how,
        )


@dataclass(frozen=True)
class Comparison:
    """One measured row: several columns that do the same work."""

    suite: str
    case: str
    allocator: str
    timings: dict[str, Timing]
    bytes_moved: int | None = None
    copy: str | None = None
    """The column that is a plain copy."""
    ours: str | None = None
    """The column that the speed-ups are of."""
    omitted: dict[str, str] | None = None
    """Columns that could not run, with the reason."""
    elements: int | None = None
    """Elements of the largest input."""
    limits: dict[str, tuple[str, float]] | None = None
    """Column to the column it is held against and how many times its time it may take."""
    copy_bytes: int | None = None
    """What the copy reads and writes, where that is not `bytes_moved`."""

    @property
    def title(self) -> str:
        """Suite, case and allocator setting."""
        setting = "" if self.allocator == "default" else f" [{self.allocator} allocator]"
        return f"{self.suite}: {self.case}{setting}"

    @property
    def large(self) -> bool:
        """Whether the work outweighs the call; a row that does not tell its size counts as such."""
        if self.elements is not None:
            return self.elements >= LARGE
        return self.bytes_moved is None or self.bytes_moved // 4 >= LARGE

    def our_columns(self) -> list[str]:
        """The column that speed-ups are of, then our others."""
        others = [name for name in self.timings if name.startswith("ours") and name != self.ours]
        return ([self.ours] if self.ours else []) + others

    def speed_ups(self) -> dict[str, float]:
        """Rival column to how many times faster ours is; empty where none is ours."""
        ours = self.our_columns()
        if not ours:
            return {}
        own = self.timings[ours[0]].median
        return {n: t.median / own for n, t in self.timings.items() if n not in ours}

    def bandwidth(self, column: str) -> float | None:
        """Bytes per second, or None where there is no such column or its bytes are not known."""
        if column not in self.timings:
            return None
        nbytes = self.bytes_moved
        if column == self.copy and self.copy_bytes is not None:
            nbytes = self.copy_bytes
        return nbytes / self.timings[column].median if nbytes else None

    def of_copy(self, column: str) -> float | None:
        """The column's bandwidth as a fraction of the copy's, or None without a copy."""
        own, copied = self.bandwidth(column), self.copy and self.bandwidth(self.copy)
        return own / copied if own and copied else None

    def over_limit(self) -> list[str]:
        """A sentence for each column that takes more than it may."""
        lines = []
        for column, (rival, limit) in (self.limits or {}).items():
            if column not in self.timings or rival not in self.timings:
                continue
            ratio = self.timings[column].median / self.timings[rival].median
            if ratio > limit:
                lines.append(
                    f"{self.title}: {column} takes {ratio:.2f}x {rival}, {limit:g}x allowed"
                )
        return lines

    def table(self) -> str:
        """The row as text: time, GB/s, fraction of the copy's speed, speed-up of ours."""
        head = f"{self.suite}: {self.case} [allocator: {self.allocator}]"
        titles = ("column", "median", "iqr", "GB/s", "of copy", "ours is")
        lines = [head, "  {:<38}{:>12}{:>10}{:>9}{:>9}{:>10}".format(*titles)]
        for name, timing in self.timings.items():
            bandwidth, of_copy = self.bandwidth(name), self.of_copy(name)
            lines.append(
                f"  {name:<38}{seconds(timing.median):>12}{seconds(timing.quartile_range):>10}"
                f"{f'{bandwidth / 1e9:.1f}' if bandwidth else '-':>9}"
                f"{f'{of_copy:.2f}' if of_copy else '-':>9}{self._speed_up(timing):>10}"
            )
        how = {timing.how for timing in self.timings.values()} - {"wall clock"}
        if len(how) == 1:
            lines.append(f"  timed as {how.pop()}")
        elif how:
            lines += [f"  {name}: timed as {t.how}" for name, t in self.timings.items()]
        lines += [f"  {name:<38}not run: {why}" for name, why in (self.omitted or {}).items()]
        return "\n".join(lines)

    def _speed_up(self, timing: Timing) -> str:
        if self.ours is None:
            return "-"
        return f"{timing.median / self.timings[self.ours].median:.2f}x"


def seconds(value: float) -> str:
    """A time with a unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"
