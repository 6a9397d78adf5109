"""Steps and iterations, recorded and not, beside the plain passes in the same arithmetic.

    python -m benchmarks.step_times --json step_times.json

Each program is measured in float32 and, on a GPU, with TF32; the file is written after each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from synq_fast.runtime.precision import tensor_float32

from . import harness
from .cases import RESNET20, Case, Workload, load
from .engine import EngineSynthesis, engine_trainer
from .plain_passes import plain_step, plain_synthesis
from .results_file import environment

CASES = ("resnet18:16", "resnet18:256", f"{RESNET20}:64")
ITERATIONS = 2


def _step(record: bool) -> Callable[[Workload, str], Callable[[], object]]:
    return lambda work, precision: engine_trainer(work, record=record, precision=precision).advance


def _iterations(record: bool) -> Callable[[Workload, str], Callable[[], object]]:
    def make(work: Workload, precision: str) -> Callable[[], object]:
        return EngineSynthesis(
            work, augment=False, iterations=ITERATIONS, record=record, precision=precision
        )

    return make


# What makes the call, and how many steps or iterations that does.
PROGRAMS: dict[str, tuple[Callable[[Workload, str], Callable[[], object]], int]] = {
    "plain passes of a step, 9F": (lambda w, _: plain_step(w.teacher.module, w.images), 1),
    "step, recorded": (_step(True), 1),
    "step": (_step(False), 1),
    "plain passes of an iteration, 2F": (
        lambda w, _: plain_synthesis(w.teacher.module, w.images),
        1,
    ),
    "iteration, recorded": (_iterations(True), ITERATIONS),
    "iteration": (_iterations(False), ITERATIONS),
}


def measure(work: Workload, name: str, precision: str, rounds: int) -> dict[str, Any]:
    """One program's seconds, or why it has none."""
    row: dict[str, Any] = {"case": work.title, "precision": precision, "program": name}
    make, works = PROGRAMS[name]
    try:
        with tensor_float32(precision == "tf32"):
            call = make(work, precision)
            timing = harness.interleave({name: call}, rounds=rounds, clock="wall")[name]
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        return {**row, "failed": f"{type(error).__name__}: {reason}"}
    return {**row, "seconds": timing.median / works, "fastest": timing.fastest / works}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every program; 1 if one could not be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", nargs="+", default=CASES, metavar="MODEL:BATCH")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE", help="written after each program")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for text in options.case:
        model, _, batch = text.rpartition(":")
        work = load(Case(model, int(batch)))
        for precision in harness.precisions():
            for name in PROGRAMS:
                row = measure(work, name, precision, options.rounds)
                rows.append(row)
                time = row.get("failed") or f"{1e3 * row['seconds']:.2f} ms"
                print(f"{work.title}, {precision}: {name}: {time}", flush=True)
                if options.json:
                    options.json.parent.mkdir(parents=True, exist_ok=True)
                    content = {"environment": environment(), "steps": rows}
                    options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 1 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
