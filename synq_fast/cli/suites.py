"""The benchmark suites as a command: each run in a process of its own, by pytest-benchmark."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from synq_fast.errors import SynqFastError
from synq_fast.runtime.extras import needs

# The suites of whole steps; every other one is of an op.
WHOLE = ("step", "blocks", "transformer", "synthesis")
_PACKAGE = "synq_fast.benchmarks"
_PREFIX = "bench_"


class BenchmarkError(SynqFastError, RuntimeError):
    """A benchmark that cannot be run as asked."""


def suites() -> dict[str, Path]:
    """Return the file of each suite by its name, such as "fake_quantize".

    Raises:
        BenchmarkError: The suites were not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    files = sorted(folder.glob(f"{_PREFIX}*.py")) if folder is not None else []
    if not files:
        raise BenchmarkError(
            "the benchmark suites are not part of this installation; reinstall synq-fast"
        )
    return {path.stem.removeprefix(_PREFIX): path for path in files}


def op_suites(names: Sequence[str] | None = None) -> list[str]:
    """Return the suites of the named ops, by default of all.

    Raises:
        BenchmarkError: There is no suite of such a name.
    """
    known = [name for name in suites() if name not in WHOLE]
    for name in names or ():
        if name not in known:
            raise BenchmarkError(f'no benchmark of an op "{name}"; there are {", ".join(known)}')
    return list(dict.fromkeys(names)) if names else known


@dataclass(frozen=True)
class Workload:
    """What steps are measured on, and what of them."""

    model: str | None = None
    """A name that `load_teacher` knows; it is measured untrained. By default ResNet-20."""
    batch: int | None = None
    """Images in a batch."""
    size: int | None = None
    """Pixels of the images' sides, by default the model's own."""
    switches: bool = False
    """Measure what each inefficiency of the published code costs, and nothing else."""
    aging: bool = False
    """Measure a step after 2,000 others, and nothing else."""

    def check(self) -> None:
        """Find mistakes before minutes of measuring.

        Raises:
            BenchmarkError: A number is out of bounds.
            ModelError: There is no such model, or it does not take images of this size.
        """
        for name, value in (("batch", self.batch), ("size", self.size)):
            if value is not None and value < 1:
                raise BenchmarkError(f"--{name} must be at least 1, got {value}")
        if self.model is not None or self.size is not None:
            cases = importlib.import_module(f"{_PACKAGE}.cases")
            cases.Case(self.model or cases.RESNET20, 1, self.size).teacher()

    def options(self) -> dict[str, object]:
        """The suites' options."""
        return {
            "model": self.model,
            "batch": self.batch,
            "size": self.size,
            "switches": self.switches or None,
            "aging": self.aging or None,
        }


def run(
    names: Sequence[str],
    *,
    device: str | None = None,
    threads: int | None = None,
    rounds: int | None = None,
    json: Path | None = None,
    plot: Path | None = None,
    workload: Workload | None = None,
) -> bool:
    """Measure suites one after another; progress and tables go to standard output.

    Args:
        names: Suites, such as "fake_quantize" or "step".
        device: "cpu" or "cuda"; by default a GPU where there is one.
        threads: Intra-op threads on a CPU.
        rounds: Rounds of each comparison, at least 2, instead of the suites' own numbers.
        json: Where to write the rows.
        plot: Where to draw each op's fraction of the copy bandwidth, a PNG.
        workload: What the suites of whole steps measure, by default ResNet-20.

    Returns:
        Whether something was measured, every suite ran and all columns computed the same.

    Raises:
        BenchmarkError: Something needed is not installed, not there or cannot be written.
        ModelError: The workload's model does not exist or does not take its images.
    """
    _check(device, threads, rounds, json, plot)
    workload = workload or Workload()
    workload.check()
    files = suites()
    with tempfile.TemporaryDirectory() as scratch:
        rows = json or Path(scratch) / "rows.json"
        rows.unlink(missing_ok=True)
        options: dict[str, object] = {
            "device": device,
            "threads": threads,
            "rounds": rounds,
            "write-rows": rows,
        }
        # Otherwise pytest-benchmark leaves a folder where the command is run.
        options["benchmark-storage"] = Path(scratch).as_uri()
        options |= workload.options()
        given = [
            f"--{key}" if value is True else f"--{key}={value}"
            for key, value in options.items()
            if value is not None
        ]
        passed = _pytest([files[name] for name in names], given)
        if not rows.exists():
            if passed or json or plot:
                print("nothing was measured, and nothing written; see above", file=sys.stderr)
            return False
        if plot is not None:
            importlib.import_module(f"{_PACKAGE}.plot").draw_files([rows], plot)
        for path in (json, plot):
            if path is not None:
                print(f"wrote {path}")
    return passed


def _check(
    device: str | None, threads: int | None, rounds: int | None, *outputs: Path | None
) -> None:
    needs("bench", "a benchmark")
    if outputs[-1] is not None:
        needs("report", "a plot")
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError(
            "torch finds no CUDA device on this machine; leave out --device cuda to measure the CPU"
        )
    for name, value, least in (("threads", threads, 1), ("rounds", rounds, 2)):
        if value is not None and value < least:
            raise BenchmarkError(f"--{name} must be at least {least}, got {value}")
    for path in outputs:
        # Before minutes of measuring, not after.
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise BenchmarkError(f'cannot write "{path}": its folder must exist and it be a file')


def _pytest(files: Sequence[Path], options: Sequence[str]) -> bool:
    command = [sys.executable, "-m", "pytest", *map(str, files), *options]
    # The settings of whatever project lies around the package are not meant for it.
    command += ["-q", "-c", os.devnull, f"--rootdir={files[0].parent}", "--tb=short"]
    command += ["-p", "no:cacheprovider", "--benchmark-quiet", "--disable-warnings"]
    # It would be shown for a check that fails before anything is timed.
    command += ["-W", "ignore:Benchmark fixture was not used"]
    foreign = ("PYTEST_ADDOPTS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    sys.stdout.flush()
    with subprocess.Popen(command, env=environment) as process:
        try:
            return process.wait() == 0
        except KeyboardInterrupt:
            # Ctrl-C reached the process too; it ends by itself, with the rows it has.
            process.wait()
            raise
