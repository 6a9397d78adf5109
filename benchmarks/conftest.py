"""Options, fixtures and the final tables of the benchmark suites."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from synq_fast.runtime.precision import tensor_float32

from . import cases, harness, results_file, summary
from .progress import Progress
from .tables import Table

_COMPARISONS = pytest.StashKey[list[harness.Comparison]]()
_TABLES = pytest.StashKey[list[Table]]()
# Tables that are measured instead of everything else, and only when asked for.
_ASKED = ("switches", "aging")
# Rounds that take longer, in seconds, are reported one by one.
SILENCE = 5.0
Compare = Callable[..., harness.Comparison]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flags that choose the device, shorten a run and write result files."""
    parser.addoption(
        "--device",
        choices=("cpu", "cuda"),
        help="what to measure (default: a GPU where there is one)",
    )
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
    parser.addoption("--model", help="of steps: a name that load_teacher knows, untrained")
    parser.addoption("--batch", type=int, help="of steps: images in a batch")
    parser.addoption("--size", type=int, help="of steps: pixels of the images' sides")
    parser.addoption("--switches", action="store_true", help="of steps: cost of each inefficiency")
    parser.addoption("--aging", action="store_true", help="of steps: the 2,000th beside the first")
    parser.addoption("--write-rows", metavar="FILE", help="write all rows as one JSON file")


def pytest_configure(config: pytest.Config) -> None:
    """Collect ``bench_*`` files and functions, and begin the session's list of rows."""
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")
    config.addinivalue_line("markers", "asked(option): measured when the option asks for it")
    config.stash.setdefault(_TABLES, [])
    rows = config.stash.setdefault(_COMPARISONS, [])
    config.pluginmanager.register(Progress(config, rows), "synq_fast_progress")
    if config.getoption("--device"):
        try:
            harness.use_device(config.getoption("--device"))
        except RuntimeError as error:
            raise pytest.UsageError(f"--device cuda: {error}") from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Measure each row under every allocator setting, unless the suite chooses one."""
    marks = metafunc.definition.iter_markers("parametrize")
    chosen = any(mark.args[0] == "allocator" for mark in marks)
    for name in {"case", "first_case"} & set(metafunc.fixturenames):
        found = cases.chosen(metafunc.config, metafunc.module.CASES)
        found = found[:1] if name == "first_case" else found
        metafunc.parametrize(name, found, ids=lambda case: f"{case.model}-{case.batch}")
    if "precision" in metafunc.fixturenames:
        metafunc.parametrize("precision", harness.precisions(), indirect=True)
    if "allocator" in metafunc.fixturenames and not chosen:
        metafunc.parametrize("allocator", harness.allocator_settings(), indirect=True)


def _has_layout(given: Mapping[str, object]) -> bool:
    shape = given.get("shape")
    return given.get("layout") != "channels_last" or not isinstance(shape, tuple) or len(shape) == 4


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what the options ask for, and one layout of what has fewer dimensions than images."""
    wanted = {option for option in _ASKED if config.getoption(f"--{option}")}

    def kept(item: pytest.Item) -> bool:
        mark = item.get_closest_marker("asked")
        given = getattr(item, "callspec", None)
        if given is not None and not _has_layout(given.params):
            return False
        return (mark.args[0] in wanted) if mark is not None else not wanted

    left = [item for item in items if kept(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = left


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with harness.fixed_threads(request.config.getoption("--threads")):
        yield


@pytest.fixture
def allocator(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test under an allocator setting; gives the setting's name."""
    with harness.allocator(request.param):
        yield request.param


@pytest.fixture
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """What all networks of the test compute in; gives its name."""
    with tensor_float32(request.param == "tf32"):
        yield request.param


@pytest.fixture
def show(request: pytest.FixtureRequest) -> Callable[[Table], None]:
    """Keep a table for the end of the run."""
    return request.config.stash[_TABLES].append


@pytest.fixture
def rounds_of(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """The rounds that the options ask for, else a suite's own number."""
    return lambda own: request.config.getoption("--rounds") or own


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say on the terminal what a long benchmark is at."""
    terminal = request.config.pluginmanager.get_plugin("terminalreporter")

    def say(text: str) -> None:
        if terminal is not None:
            terminal.write(f"{text} ... ", flush=True)

    return say


@pytest.fixture
def compare(
    request: pytest.FixtureRequest,
    benchmark: BenchmarkFixture,
    allocator: str,
    tell: Callable[[str], None],
) -> Compare:
    """Measure columns side by side, keep the row for the final tables and report ours."""

    def measure(
        case: str,
        columns: Mapping[str, Callable[[], object]],
        *,
        ours: str | None = None,
        copy: str | None = None,
        bytes_moved: int | None = None,
        elements: int | None = None,
        omitted: dict[str, str] | None = None,
        limits: dict[str, tuple[str, float]] | None = None,
        rounds: int = 15,
        calls: int = 1,
        warmup: int = 2,
        clock: str = "device",
        works: int = 1,
    ) -> harness.Comparison:
        suite = request.path.stem.removeprefix("bench_")
        rounds = request.config.getoption("--rounds") or rounds
        started = time.monotonic()

        def after_round(done: int) -> None:
            if time.monotonic() - started > SILENCE * done:
                tell(f"{done}/{rounds}")

        timings = harness.interleave(
            columns,
            rounds=rounds,
            calls=calls,
            warmup=warmup,
            clock=clock,
            after_round=after_round,
        )
        if works > 1:
            timings = {name: timing.divided(works) for name, timing in timings.items()}
        row = harness.Comparison(
            suite,
            case,
            allocator,
            timings,
            bytes_moved,
            copy,
            ours,
            omitted,
            elements,
            limits,
            2 * _nbytes(columns[copy]()) if copy else None,
        )
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


def _nbytes(copied: object) -> int:
    if not isinstance(copied, torch.Tensor):
        raise TypeError(f"the copy column must return the copied tensor, got {copied!r}")
    return copied.nbytes


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print every row, the summary and, when asked, write the result files."""
    config = terminalreporter.config
    comparisons, tables = config.stash[_COMPARISONS], config.stash[_TABLES]
    if not comparisons and not tables:
        return
    for comparison in comparisons:
        terminalreporter.write_line("\n" + comparison.table())
    if comparisons:
        terminalreporter.write_line("\n" + summary.summary(comparisons))
    for table in tables:
        terminalreporter.write_line("\n" + table.text())
    threads = config.getoption("--threads")
    folder, file = config.getoption("--write-results"), config.getoption("--write-rows")
    if file:
        results_file.write_file(comparisons, Path(file), threads, tables)
    written = (
        results_file.write_results(comparisons, Path(folder), threads, tables) if folder else []
    )
    for path in written:
        terminalreporter.write_line(f"wrote {path}")
