"""Shows which row is measured and what came of it, while a run goes on."""

from __future__ import annotations

import time

import pytest

from . import summary
from .rows import Comparison


class Progress:
    """A pytest plugin: one line for each benchmark, begun when it starts."""

    def __init__(self, config: pytest.Config, rows: list[Comparison]) -> None:
        """Report on ``rows``, which grows as benchmarks end."""
        self._config, self._rows = config, rows
        self._total = self._begun = self._shown = 0
        self._started = time.monotonic()

    @property
    def _terminal(self) -> pytest.TerminalReporter | None:
        terminal: pytest.TerminalReporter | None
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        return terminal

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Learn how many benchmarks there are."""
        self._total = len(session.items)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Name the benchmark that starts."""
        self._begun += 1
        self._started = time.monotonic()
        if self._terminal is not None:
            name = nodeid.rpartition("::")[2].removeprefix("bench_")
            self._terminal.ensure_newline()
            self._terminal.write(f"[{self._begun}/{self._total}] {name} ... ", flush=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Say what was measured, or that it failed."""
        if self._terminal is None or not (report.when == "call" or report.failed or report.skipped):
            return
        new, self._shown = self._rows[self._shown :], len(self._rows)
        if report.failed:
            self._terminal.write_line("FAILED", red=True)
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "skipped"
            self._terminal.write_line(str(reason).removeprefix("Skipped: "))
        else:
            self._terminal.write_line(f"{time.monotonic() - self._started:.0f} s")
        for row in new:
            self._terminal.write_line(f"    {summary.row_line(row)}")

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Print no letters between these lines."""
        for outcome in ("passed", "failed", "skipped"):
            if report.outcome == outcome and (report.when == "call" or outcome != "passed"):
                return outcome, "", ""
        return None
