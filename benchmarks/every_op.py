"""Every public op on small inputs of its case: values and gradients.

    python -m benchmarks.every_op --device cuda --capture --json ops.json

Quick enough to run under a memory checker. With --capture each call is also captured in a CUDA
graph, replayed and compared with a plain call.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch

from synq_fast import ops
from synq_fast.ops import _installation as info
from synq_fast.testing import CASES, Check
from synq_fast.testing.conformance import HALF_TYPES, checks, moved, run, same_bits

from . import cuda_timing

# read_range has no kernels: it is plain PyTorch on any device.
OPS = [op for op in CASES if op != "read_range"]
BACKENDS = {"cpu": ["cpu"], "cuda": ["cuda", "triton"]}
# Samples of a case in float32, spread over its inputs; one of them in each half type.
SAMPLES, LARGEST = 10, 12_000


@dataclass(frozen=True)
class Verdict:
    """What became of an op on one backend; empty texts where all is well.

    Attributes:
        op: The op's name.
        backend: The backend that ran it.
        exact: Whether the same bits were demanded.
        wrong: How it differs from the reference, or the error.
        not_captured: Why a CUDA graph of it failed, or how its replay differs.
    """

    op: str
    backend: str
    exact: bool
    wrong: str = ""
    not_captured: str = ""

    @property
    def text(self) -> str:
        """What is wrong, or that nothing is."""
        captured = self.not_captured and f"not captured: {self.not_captured}"
        return "; ".join(filter(None, (self.wrong, captured))) or "right"


def samples(op: str) -> list[Check]:
    """Small inputs of every kind, quick enough for a memory checker."""
    case = CASES[op]

    def chosen(dtype: torch.dtype, count: int) -> list[Check]:
        small = {"wanted": lambda s: not s.large and s.tensors[0].numel() <= LARGEST}
        found = list(checks(case, dtype, layouts=("given", "channels_last"), **small))
        return list(islice(found, 0, None, max(1, len(found) // count)))

    halves = [check for dtype in HALF_TYPES for check in chosen(dtype, 2)] if case.cast else []
    return chosen(torch.float32, SAMPLES) + halves


def check(op: str, backend: str, device: str, capture: bool = False) -> Verdict:
    """Hold an op on one backend to its case."""
    wrong = not_captured = ""
    try:
        with ops.backend(backend):
            for sample in samples(op):
                wrong = wrong or "; ".join(sample.faults(ops, device)[:1])
                if capture and not not_captured:
                    not_captured = captured_difference(sample, device)
    except Exception as error:
        wrong = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return Verdict(op, backend, CASES[op].exact, wrong, not_captured)


def captured_difference(sample: Check, device: str) -> str:
    """How the replay of a captured call differs from a plain one, or why it cannot be captured."""
    case = sample.case
    tensors = [moved(x, device) for x in sample.sample.tensors]
    options = {key: moved(value, device) for key, value in sample.sample.options.items()}

    def results() -> list[torch.Tensor]:
        found = run(
            lambda *x, **o: case.call(ops, *x, **o),
            tensors,
            options,
            case.differentiable,
        )
        gradients = found.gradients.get("all results", ())
        return [*found.values, *(g for g in gradients if g is not None)]

    captured: list[torch.Tensor] = []

    def call() -> None:
        captured[:] = results()

    try:
        cuda_timing.captured([call], 1)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    faults = [same_bits(a, b) for a, b in zip(captured, results(), strict=True)]
    return "; ".join(filter(None, faults))


def backends(op: str, device: str) -> list[str]:
    """The backends with a kernel for an op that run on a device here."""
    available = ops.available_backends()
    kernels = BACKENDS[device] if op in info.report().kernels else ()
    return [name for name in kernels if available[name] is None]


def verdicts_of(op: str, wanted: Sequence[str], device: str, capture: bool) -> list[Verdict]:
    """The verdicts of an op on every backend that is wanted; one that is missing is wrong."""
    if not hasattr(ops, op):
        return [Verdict(op, "none", CASES[op].exact, "this installation has no such op")]
    found = backends(op, device)
    reasons = ops.available_backends()
    missing = [
        Verdict(op, name, CASES[op].exact, reasons.get(name) or "no kernel of it is built here")
        for name in wanted
        if name not in found
    ]
    checked = [name for name in found if name in wanted]
    return [*missing, *(check(op, name, device, capture) for name in checked)]


def in_a_process(op: str, backend: str | None, device: str, capture: bool) -> list[Verdict]:
    """`verdicts_of` in a process of its own: several at a time, and none ends the others."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "verdicts.json"
        command = [sys.executable, "-m", __spec__.name, "--device", device, "--op", op]
        command += ["--json", str(file)] + ["--capture"] * capture
        command += ["--backend", backend] if backend else []
        done = subprocess.run(command, capture_output=True, text=True)
        if file.exists():
            return [Verdict(**fields) for fields in json.loads(file.read_text())["verdicts"]]
    last = (done.stderr.strip().splitlines() or [""])[-1]
    wrong = f"its process ended with status {done.returncode}: {last}"
    return [Verdict(op, backend or device, CASES[op].exact, wrong)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the ops named on the command line; 1 if one is wrong, or a backend is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backend", choices=("cpu", "cuda", "triton"), help="only this one")
    parser.add_argument("--op", nargs="+", choices=OPS, default=OPS, metavar="NAME")
    parser.add_argument("--capture", action="store_true", help="in a CUDA graph too")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="written after each op")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device on this machine")
    verdicts: list[Verdict] = []
    for found in _each(options):
        verdicts += found
        for verdict in found:
            print(f"{verdict.op} ({verdict.backend}): {verdict.text}", flush=True)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            content = {"verdicts": [asdict(verdict) for verdict in verdicts]}
            options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 1 if any(verdict.wrong or verdict.not_captured for verdict in verdicts) else 0


def _each(options: argparse.Namespace) -> Iterator[list[Verdict]]:
    """The verdicts of each op, as soon as they are there."""
    choice = options.backend, options.device, options.capture
    if options.jobs > 1 and len(options.op) > 1:
        with ThreadPoolExecutor(options.jobs) as pool:
            yield from pool.map(lambda op: in_a_process(op, *choice), options.op)
        return
    wanted = [options.backend] if options.backend else BACKENDS[options.device]
    for op in options.op:
        yield verdicts_of(op, wanted, options.device, options.capture)


if __name__ == "__main__":
    sys.exit(main())
