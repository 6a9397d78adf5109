"""Shared measuring: interleaved rounds, fixed threads, two allocator settings, result files."""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

THREADS = 2
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MEBIBYTE = 1 << 20
# glibc raises its mmap threshold by itself, but not above 32 MiB, and keeps trim at twice that.
_ALLOCATORS = {
    "default": (32 * _MEBIBYTE, 64 * _MEBIBYTE),
    "raised": (1024 * _MEBIBYTE, 2047 * _MEBIBYTE),
}


def allocator_settings() -> list[str]:
    """Settings that make a difference here: both with glibc and CPU tensors, else the default."""
    return list(_ALLOCATORS) if DEVICE.type == "cpu" and _glibc() is not None else ["default"]


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


@contextmanager
def allocator(setting: str) -> Iterator[None]:
    """Run the block with glibc's ``default`` or ``raised`` mmap and trim thresholds.

    By default each block above 32 MiB is mapped for itself and handed back when freed, so every
    large output pays page faults. Raised thresholds let freed memory be used again.
    """
    glibc = _glibc()

    def set_thresholds(name: str) -> None:
        if glibc is not None:
            mmap_threshold, trim_threshold = _ALLOCATORS[name]
            if not (
                glibc.mallopt(_M_MMAP_THRESHOLD, mmap_threshold)
                and glibc.mallopt(_M_TRIM_THRESHOLD, trim_threshold)
            ):
                raise RuntimeError(f'mallopt refused the "{name}" allocator setting')
            glibc.malloc_trim(0)

    set_thresholds(setting)
    try:
        yield
    finally:
        set_thresholds("default")


@contextmanager
def fixed_threads(count: int = THREADS) -> Iterator[None]:
    """Run the block with ``count`` intra-op threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronize() -> None:
    """Wait for the device; nothing on a CPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Timing:
    """Seconds per call over the rounds of one column."""

    median: float
    fastest: float
    quartile_range: float
    rounds: int


def interleave(
    columns: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    calls: int = 1,
    warmup: int = 2,
) -> dict[str, Timing]:
    """Time several callables in turn, so that a disturbance of the machine meets all of them.

    Args:
        columns: name to callable; each is called without arguments.
        rounds: how often the whole sequence of columns is run; at least 2.
        calls: calls of one column in a row, timed together.
        warmup: untimed calls of each column first.

    Returns:
        Name to timing; a round begins one column later than the round before it.
    """
    names = list(columns)
    for name in names:
        for _ in range(warmup):
            columns[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_index in range(rounds):
        offset = round_index % len(names)
        for name in names[offset:] + names[:offset]:
            call = columns[name]
            synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            synchronize()
            seconds[name].append((time.perf_counter() - start) / calls)
    return {name: _timing(values) for name, values in seconds.items()}


def _timing(seconds: list[float]) -> Timing:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return Timing(middle, min(seconds), high - low, len(seconds))


@dataclass(frozen=True)
class Comparison:
    """One measured row: several columns that do the same work."""

    suite: str
    case: str
    allocator: str
    timings: dict[str, Timing]
    bytes_moved: int | None = None
    copy: str | None = None
    """The column that copies the same bytes."""
    ours: str | None = None
    """The column that the speed-ups are of."""
    omitted: dict[str, str] | None = None
    """Columns that could not run, with the reason."""

    def table(self) -> str:
        """The row as text: time, GB/s, fraction of the copy's speed, speed-up of ours."""
        head = f"{self.suite}: {self.case} [allocator: {self.allocator}]"
        titles = ("column", "median", "iqr", "GB/s", "of copy", "ours is")
        lines = [head, "  {:<38}{:>12}{:>10}{:>9}{:>9}{:>10}".format(*titles)]
        for name, timing in self.timings.items():
            lines.append(
                f"  {name:<38}{_seconds(timing.median):>12}{_seconds(timing.quartile_range):>10}"
                f"{self._bandwidth(timing):>9}{self._ratio(self.copy, timing, '{:.2f}'):>9}"
                f"{self._speed_up(timing):>10}"
            )
        lines += [f"  {name:<38}not run: {why}" for name, why in (self.omitted or {}).items()]
        return "\n".join(lines)

    def _bandwidth(self, timing: Timing) -> str:
        return f"{self.bytes_moved / timing.median / 1e9:.1f}" if self.bytes_moved else "-"

    def _ratio(self, column: str | None, timing: Timing, text: str) -> str:
        return text.format(self.timings[column].median / timing.median) if column else "-"

    def _speed_up(self, timing: Timing) -> str:
        if self.ours is None:
            return "-"
        return f"{timing.median / self.timings[self.ours].median:.2f}x"


def _seconds(value: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def environment(threads: int = THREADS) -> dict[str, object]:
    """What a result depends on: device, driver, versions, threads, commit."""
    facts: dict[str, object] = {
        "device": str(DEVICE),
        "processor": _processor(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _output("git", "rev-parse", "HEAD"),
        "uncommitted": bool(_output("git", "status", "--porcelain")),
    }
    if DEVICE.type == "cuda":
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
        root = Path(__file__).parent
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write_results(
    comparisons: list[Comparison], folder: Path, threads: int = THREADS
) -> list[Path]:
    """Write one JSON file for each suite and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    facts, paths = environment(threads), []
    for suite in dict.fromkeys(comparison.suite for comparison in comparisons):
        rows = [asdict(comparison) for comparison in comparisons if comparison.suite == suite]
        path = folder / f"{suite}-{DEVICE.type}.json"
        path.write_text(json.dumps({"environment": facts, "rows": rows}, indent=2) + "\n")
        paths.append(path)
    return paths
