"""Options, fixtures and the final tables of the benchmark suites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import harness

_COMPARISONS = pytest.StashKey[list[harness.Comparison]]()
Compare = Callable[..., harness.Comparison]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flags that write result files and shorten a run."""
    parser.addoption(
        "--threads",
        type=int,
        default=harness.THREADS,
        help="intra-op threads (default: %(default)s); figures of different counts do not compare",
    )
    parser.addoption(
        "--rounds",
        type=int,
        help="rounds of each comparison, at least 2, instead of the suites' own numbers",
    )
    parser.addoption(
        "--write-results",
        metavar="FOLDER",
        nargs="?",
        const=str(Path(__file__).parent / "results"),
        help="write one JSON file for each suite (default folder: benchmarks/results)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect ``bench_*`` files and functions, and begin the session's list of rows."""
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")
    config.stash[_COMPARISONS] = []


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with harness.fixed_threads(request.config.getoption("--threads")):
        yield


@pytest.fixture(params=harness.allocator_settings())
def allocator(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test under each allocator setting; gives the setting's name."""
    with harness.allocator(request.param):
        yield request.param


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: BenchmarkFixture, allocator: str) -> Compare:
    """Measure columns side by side, keep the row for the final tables and report ours."""

    def measure(
        case: str,
        columns: Mapping[str, Callable[[], object]],
        *,
        ours: str | None = None,
        copy: str | None = None,
        bytes_moved: int | None = None,
        omitted: dict[str, str] | None = None,
        rounds: int = 15,
        calls: int = 1,
        warmup: int = 2,
    ) -> harness.Comparison:
        suite = request.path.stem.removeprefix("bench_")
        rounds = request.config.getoption("--rounds") or rounds
        timings = harness.interleave(columns, rounds=rounds, calls=calls, warmup=warmup)
        row = harness.Comparison(suite, case, allocator, timings, bytes_moved, copy, ours, omitted)
        request.config.stash[_COMPARISONS].append(row)
        benchmark.group = f"{suite}: {case}"
        for name, timing in timings.items():
            benchmark.extra_info[name] = timing.median

        def once() -> None:
            columns[ours or next(iter(columns))]()
            harness.synchronize()

        benchmark.pedantic(once, rounds=3, iterations=calls)
        return row

    return measure


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print every row and, when asked, write the result files."""
    comparisons = terminalreporter.config.stash[_COMPARISONS]
    for comparison in comparisons:
        terminalreporter.write_line("\n" + comparison.table())
    folder = terminalreporter.config.getoption("--write-results")
    if comparisons and folder:
        threads = terminalreporter.config.getoption("--threads")
        for path in harness.write_results(comparisons, Path(folder), threads):
            terminalreporter.write_line(f"wrote {path}")
