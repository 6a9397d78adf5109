"""Writes the table of the Triton kernels' block shapes, kernels/block_shapes.json.

python -m benchmarks.block_shapes [--output FILE] [--predict]

Lanes of a candidate take 16, 32 or 64 bytes of each tensor. On a GPU candidates are timed, and the
fastest is taken. Without one, or with --predict, they are compiled and predicted by the rules of
docs/gpu.md: the shortest time is taken, and of equal ones that whose other limits are farthest.
What spills on another architecture is not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import cuda_timing
from .block_shape_cases import Case, cases
from .gpu_model import CARDS, Card, Launch, predict
from .machine_code import MachineCodeError
from .tables import Table
from .triton_code import Launched, launches_of

LANE_BYTES = (16, 32, 64)
WARPS = (4, 8)
ROUNDS = 5
# Times closer than the first are the same, and limits as far away within the second.
NOISE, FAR = 0.01, 0.05
# What tests/compile allow, and of the usual calls: other sizes and architectures need more.
MOST_REGISTERS, USUAL_REGISTERS = 128, 104
# On which what is chosen must not spill.
ARCHITECTURES = (80, 90, 100, 120)

Shape = tuple[int, int]


@dataclass(frozen=True)
class Outcome:
    """What is known of one shape: seconds, and of a prediction what it rests on.

    Attributes:
        crowded: The times that the limits would take one after another, in times of the whole.
        fits: Whether registers suffice.
    """

    shape: Shape
    seconds: float
    crowded: float = 0.0
    registers: int = 0
    blocks: int = 0
    fits: bool = True


def candidates(case: Case, present: Shape | None) -> list[Shape]:
    """Returns elements and warps to try, the present ones first."""
    # Elements of packed codes are words of eight.
    size = 8 if case.dtype == torch.int8 else case.dtype.itemsize
    found = [(32 * warps * lane // size, warps) for warps in WARPS for lane in LANE_BYTES]
    return list(dict.fromkeys([present, *found] if present else found))


def measured(case: Case, shape: Shape) -> Outcome:
    """Times the case's calls on this GPU."""
    seconds = 0.0
    for call, _ in case.calls:
        sample = cuda_timing.samples({"": call})[""]
        seconds += statistics.median(sample.take() for _ in range(ROUNDS))
    return Outcome(shape, seconds)


def launched(case: Case, call: Callable[[], object], arch: int, folder: Path) -> list[Launched]:
    """Compiles what a call launches of the case's kernel."""
    name = case.kernel.split()[0]
    found = [launch for launch in launches_of(call, arch, folder) if launch.name == name]
    if not found:
        raise MachineCodeError(f"a call for {case.kernel} did not launch it")
    return found


def predicted(case: Case, shape: Shape, card: Card, arch: int, folder: Path) -> Outcome:
    """Compiles the case's calls and predicts the kernel's time."""
    predictions, crowded = [], 0.0
    for call, moved in case.calls:
        launches = launched(case, call, arch, folder)
        programs = sum(launch.programs for launch in launches)
        for launch in launches:
            part = moved * launch.programs / programs
            asked = Launch("", launch.name, part, launch.programs, launch.threads)
            predictions.append(predict(card, launch.kernel, asked))
            crowded += sum(part / rate for rate in predictions[-1].rates.values())
    seconds = sum(found.seconds for found in predictions)
    usual = [found.kernel for found in predictions]
    rare = (launch for call in case.rare for launch in launched(case, call, arch, folder))
    every = [*usual, *(launch.kernel for launch in rare)]
    registers = max(kernel.registers for kernel in usual)
    return Outcome(
        shape,
        seconds,
        crowded / seconds,
        registers,
        min(found.blocks for found in predictions),
        fits=registers <= USUAL_REGISTERS
        and all(k.registers <= MOST_REGISTERS and not k.stack_bytes for k in every),
    )


def choose(outcomes: Sequence[Outcome]) -> Outcome:
    """Returns the fastest that fits, or of all; of equal ones the least crowded, then the first."""
    usable = [outcome for outcome in outcomes if outcome.fits] or list(outcomes)
    best = min(outcome.seconds for outcome in usable)
    equal = [outcome for outcome in usable if outcome.seconds <= best * (1 + NOISE)]
    least = min(outcome.crowded for outcome in equal)
    return next(outcome for outcome in equal if outcome.crowded <= least * (1 + FAR))


def spills(case: Case, archs: Iterable[int], folder: Path, shape: Shape) -> bool:
    """Whether the kernel keeps registers in memory on some architecture."""
    from synq_fast.kernels import _block_shapes

    calls = [*(call for call, _ in case.calls), *case.rare]
    with _block_shapes.tried(case.key, _block_shapes.BlockShape(*shape)):
        found = [launched(case, call, arch, folder) for arch in archs for call in calls]
    return any(launch.kernel.stack_bytes for launches in found for launch in launches)


def without_spills(outcomes: Sequence[Outcome], spilling: Callable[[Shape], bool]) -> list[Outcome]:
    """Returns the outcomes, of which none fits that would be chosen and spills."""
    kept = list(outcomes)
    while (best := choose(kept)).fits and spilling(best.shape):
        kept[kept.index(best)] = replace(best, fits=False)
    return kept


def search(
    options: argparse.Namespace, device: torch.device, folder: Path
) -> Iterator[tuple[Case, list[Outcome]]]:
    """Yields what is found of each case."""
    from synq_fast import kernels
    from synq_fast.kernels import _block_shapes

    for case in cases(kernels, device):
        if options.kernel and options.kernel not in case.kernel:
            continue
        outcomes = []
        for shape in candidates(case, _block_shapes.SHAPES.get(case.key)):
            with _block_shapes.tried(case.key, _block_shapes.BlockShape(*shape)):
                if options.predict:
                    card = CARDS[options.card]
                    outcomes.append(predicted(case, shape, card, options.arch, folder))
                else:
                    outcomes.append(measured(case, shape))
        if options.predict:
            others = [arch for arch in ARCHITECTURES if arch != options.arch]
            outcomes = without_spills(outcomes, partial(spills, case, others, folder))
        yield case, outcomes


def written(chosen: dict[tuple[str, torch.dtype, str], Shape], card: str, how: str) -> str:
    """Returns the table as JSON, a line for each kernel, layout and type."""
    shapes: dict[str, Any] = {}
    for (kernel, dtype, layout), shape in chosen.items():
        name = str(dtype).removeprefix("torch.")
        shapes.setdefault(kernel, {}).setdefault(layout, {})[name] = list(shape)
    text = json.dumps({"card": card, "how": how, "shapes": shapes}, indent=2)
    # Two numbers of a shape on a line of their own would hide what they are.
    for elements, warps in set(chosen.values()):
        text = text.replace(
            f"[\n          {elements},\n          {warps}\n        ]", f"[{elements}, {warps}]"
        )
    return text + "\n"


COLUMNS = ("kernel, type, layout", "elements", "warps", "registers", "blocks", "us", "chosen")


def rows_of(case: Case, outcomes: Sequence[Outcome], best: Outcome) -> list[tuple]:
    """Returns the lines of one case."""
    name = f"{case.kernel}, {str(case.dtype).removeprefix('torch.')}, {case.layout}"
    return [
        (
            name, *map(str, o.shape), str(o.registers or "-"), str(o.blocks or "-"),
            round(o.seconds * 1e6, 1), "yes" if o is best else "" if o.fits else "does not fit",
        )
        for o in outcomes
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Writes the table and prints what it was chosen from."""
    from synq_fast.kernels import _block_shapes

    parser = argparse.ArgumentParser(prog="python -m benchmarks.block_shapes", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=_block_shapes.PATH, help="the table to write"
    )
    parser.add_argument("--predict", action="store_true", help="even where there is a GPU")
    parser.add_argument("--card", choices=CARDS, default="H100", help="to predict for")
    parser.add_argument("--arch", type=int, default=90, help="to compile for, default 90")
    parser.add_argument("--kernel", metavar="TEXT", help="only kernels whose name contains this")
    options = parser.parse_args(arguments)
    options.predict |= not torch.cuda.is_available()
    device = torch.device("cpu" if options.predict else "cuda")
    card = options.card if options.predict else torch.cuda.get_device_name()
    how = "predicted" if options.predict else "measured"
    chosen, rows = dict(_block_shapes.SHAPES) if options.kernel else {}, []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for case, outcomes in search(options, device, Path(folder)):
                best = choose(outcomes)
                chosen[case.key] = best.shape
                rows += rows_of(case, outcomes, best)
                print(f"{case.kernel} {case.dtype} {case.layout}: {best.shape}", file=sys.stderr)
    except MachineCodeError as error:
        print(error, file=sys.stderr)
        return 1
    options.output.write_text(written(chosen, card, how))
    print(Table("block shapes", f"{how} for {card}", COLUMNS, rows).text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
