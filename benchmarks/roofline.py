"""Predicts how fast the CUDA kernels are from their machine code, where there is no GPU.

python -m benchmarks.roofline --against main

Predictions, not measurements: docs/gpu.md says what they rest on and what they leave out.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from .gpu_model import CARDS, Card, Launch, bytes_of_turn, predict
from .machine_code import Kernel, MachineCodeError, compile_kernels
from .roofline_cases import Case, cases
from .tables import Table


class Kernels(Protocol):
    """Finds the kernel of a launch."""

    def kernel(self, launch: Launch) -> Kernel:
        """Returns the kernel of a launch."""


class Tree:
    """The kernels of one version of the sources, compiled when they are asked for."""

    def __init__(self, root: Path, arch: str, folder: Path) -> None:
        self._root, self._arch, self._folder = root, arch, folder
        self._kernels: dict[str, list[Kernel]] = {}

    def kernel(self, launch: Launch) -> Kernel:
        """Returns the kernel of a launch."""
        if launch.source not in self._kernels:
            source = self._root / "csrc" / "cuda" / f"{launch.source}.cu"
            self._kernels[launch.source] = compile_kernels(source, self._arch, self._folder)
        named = (k for k in self._kernels[launch.source] if re.search(launch.kernel, k.name))
        kernel = next(named, None)
        if kernel is None:
            raise MachineCodeError(f"{launch.source}.cu has no kernel {launch.kernel}")
        return kernel


def version(root: Path, reference: str, folder: Path, sources: str = "csrc") -> Path:
    """Writes a folder of sources of a commit, those in C++, into another folder."""
    command = ["git", "-C", str(root), "archive", reference, sources]
    archive = subprocess.run(command, capture_output=True)
    if archive.returncode:
        raise MachineCodeError(f"git has no {reference}: {archive.stderr.decode().strip()}")
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


COLUMNS = (
    "case", "code", "launches", "MB", "registers", "blocks", "in flight", "KB per SM",
    "instructions", "limit", "us", "of copy",
)  # fmt: skip


def row(
    card: Card, case: Case, code: str, launches: Sequence[Launch], tree: Kernels
) -> tuple[str | float | None, ...]:
    """Returns one line of the table; the columns between bytes and time are the main kernel's."""
    predictions = [predict(card, tree.kernel(launch), launch) for launch in launches]
    main = max(range(len(launches)), key=lambda i: predictions[i].seconds)
    found, launch = predictions[main], launches[main]
    seconds = sum(prediction.seconds for prediction in predictions)
    loop = None if launch.turns else found.kernel.loop or found.kernel.way
    instructions = loop.instructions / (bytes_of_turn(found.kernel, launch) / 4) if loop else None
    if launch.turns and (product := found.kernel.product_loop):
        work = launch.turns * product.instructions + launch.beside
        instructions = 32 * work * launch.items / ((launch.moved + launch.cached) / 4)
    in_flight = launch.in_flight or (loop.in_flight if loop else 0)
    per_sm = min(launch.items / card.multiprocessors, found.blocks)
    return (
        case.name,
        code,
        str(sum(launch.times for launch in launches)),
        str(round(sum(launch.moved * launch.times for launch in launches) / 1e6)),
        str(found.kernel.registers),
        str(found.blocks),
        str(in_flight),
        round(per_sm * launch.threads * launch.busy * in_flight / 1024, 1),
        None if instructions is None else round(instructions, 1),
        found.limit,
        str(round(seconds * 1e6)),
        round(case.needed / card.copy / seconds, 2),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the predictions."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__)
    parser.add_argument("--against", metavar="REF", help="also the code of this commit")
    parser.add_argument("--card", choices=CARDS, default="H100")
    parser.add_argument("--arch", default="90", help="architecture to compile for, default 90")
    parser.add_argument("--op", metavar="TEXT", help="only cases whose name contains this")
    options = parser.parse_args(arguments)
    card, root = CARDS[options.card], Path(__file__).resolve().parents[1]
    rows = []
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / "new").mkdir()
            after = Tree(root, options.arch, folder / "new")
            before = None
            if options.against:
                before = version(root, options.against, folder / "old")
            old = before and Tree(before, options.arch, before)
            for case in cases():
                if options.op and options.op not in case.name:
                    continue
                if old and case.before:
                    rows.append(row(card, case, options.against, case.before, old))
                rows.append(row(card, case, "here", case.after, after))
    except MachineCodeError as error:
        print(error, file=sys.stderr)
        return 1
    title = f"predicted for {options.card}, not measured; instructions per 4 bytes"
    print(Table("roofline", title, COLUMNS, rows).text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
