"""Predicts how fast the Triton kernels are from their machine code, where there is no GPU.

python -m benchmarks.roofline_triton --against main

Predictions, not measurements, by the rules of benchmarks.roofline: docs/gpu.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .gpu_model import CARDS, Launch
from .machine_code import Kernel, MachineCodeError
from .roofline import COLUMNS, row, version
from .roofline_cases import Case
from .tables import Table
from .triton_code import launches_of

SHAPE = (256, 64, 56, 56)
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# Loads from the cache, one after another, of the kernels that put parts together.
ROUNDS = {
    "finish_moments_kernel": 2.0, "finish_kernel": 2.0, "layers_finish_kernel": 4.0,
    "total_kernel": 1.0,
}  # fmt: skip
# Channels, side and layers of the BatchNorm inputs of ResNet-20.
RESNET20 = ((16, 32, 7), (32, 16, 6), (64, 8, 6))


@dataclass(frozen=True)
class Call:
    """A launcher on one input: what it is called with, and the bytes that one kernel moves.

    Of a kernel with several launches each program moves as much as any other.
    """

    name: str
    run: Callable[[Any], object]
    moved: Mapping[str, int]


class Compiled:
    """The kernels of a call's launches; a launch names its place as its source."""

    def __init__(self, call: Call, kernels: Any, capability: int, folder: Path) -> None:
        launched = launches_of(lambda: call.run(kernels), capability, folder)
        self._kernels = [launch.kernel for launch in launched]
        programs = Counter[str]()
        for launch in launched:
            programs[launch.name] += launch.programs
        self.launches = tuple(
            Launch(
                str(place), launch.name,
                call.moved.get(launch.name, 0) * launch.programs / programs[launch.name],
                launch.programs, launch.threads, rounds=ROUNDS.get(launch.name, 0.0),
            )
            for place, launch in enumerate(launched)
        )  # fmt: skip

    def kernel(self, launch: Launch) -> Kernel:
        """Returns the kernel of a launch."""
        return self._kernels[int(launch.source)]


def _network(dtype: torch.dtype, text: str, memory_format: torch.memory_format) -> list[Call]:
    xs = [
        torch.empty((256, channels, side, side), dtype=dtype, memory_format=memory_format)
        for channels, side, layers in RESNET20
        for _ in range(layers)
    ]
    stored, weights = [torch.zeros(x.shape[1]) for x in xs], [1.0] * len(xs)
    statistics = torch.zeros(3, sum(x.shape[1] for x in xs), dtype=torch.float64)
    nbytes = sum(x.numel() * x.element_size() for x in xs)
    return [
        Call(
            f"bn_statistics_losses ResNet-20 at 256 {text}",
            lambda kernels: kernels.bn_statistics_losses(xs, stored, stored, weights),
            {"partials_kernel": nbytes, "layers_partials_kernel": nbytes},
        ),
        Call(
            f"bn_statistics_losses backward ResNet-20 at 256 {text}",
            lambda kernels: kernels.bn_statistics_losses_backward(
                torch.zeros(()), xs, statistics, weights
            ),
            {"gradient_kernel": 2 * nbytes, "layers_gradient_kernel": 2 * nbytes},
        ),
    ]


def calls() -> list[Call]:
    """Returns what is predicted: the sums of whole activations, and the losses' gradients."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for layout, memory_format in LAYOUTS.items():
            x = torch.empty(SHAPE, dtype=dtype, memory_format=memory_format)
            stored, nbytes = torch.zeros(SHAPE[1]), x.numel() * x.element_size()
            kind = f"{str(dtype).removeprefix('torch.')} {layout}"
            text = f"{SHAPE} {kind}".replace(", ", ",")
            statistics = torch.zeros(3, SHAPE[1], dtype=torch.float64)
            found += [
                Call(
                    f"bn_statistics_loss {text}",
                    lambda kernels, x=x, s=stored: kernels.bn_statistics_loss(x, s, s),
                    {"partials_kernel": nbytes},
                ),
                Call(
                    f"channel_moments {text}",
                    lambda kernels, x=x: kernels.channel_moments(x),
                    {"moments_kernel": nbytes},
                ),
                Call(
                    f"bn_statistics_loss backward {text}",
                    lambda kernels, x=x, s=statistics: kernels.bn_statistics_loss_backward(
                        s[0, 0], s[0, 0], x, s
                    ),
                    {"gradient_kernel": 2 * nbytes},
                ),
                *_network(dtype, kind, memory_format),
            ]
    return found


def kernels_of(root: Path) -> Any:
    """Returns the launchers of a tree's `kernels` folder, in place of those that were imported."""
    name = "synq_fast.kernels"
    for loaded in [module for module in sys.modules if f"{module}.".startswith(f"{name}.")]:
        del sys.modules[loaded]
    spec = importlib.util.spec_from_file_location(name, root / "kernels" / "__init__.py")
    if spec is None or spec.loader is None:
        raise MachineCodeError(f"{root} has no folder of kernels")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(arguments: list[str] | None = None) -> int:
    """Prints the predictions."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.roofline_triton", description=__doc__
    )
    parser.add_argument("--against", metavar="REF", help="also the code of this commit")
    parser.add_argument("--card", choices=CARDS, default="H100")
    parser.add_argument("--arch", type=int, default=90, help="to compile for, default 90")
    parser.add_argument("--op", metavar="TEXT", help="only calls whose name contains this")
    options = parser.parse_args(arguments)
    root, rows = Path(__file__).resolve().parents[1], []
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder, trees = Path(temporary), {"here": root}
            if options.against:
                old = version(root, options.against, folder / "old", "kernels")
                trees = {options.against: old, **trees}
            for code, tree in trees.items():
                kernels = kernels_of(tree)
                for call in calls():
                    if options.op and options.op not in call.name:
                        continue
                    compiled = Compiled(call, kernels, options.arch, folder)
                    case = Case(call.name, (), compiled.launches)
                    rows.append(row(CARDS[options.card], case, code, compiled.launches, compiled))
    except (MachineCodeError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    title = f"predicted for {options.card}, not measured; instructions per 4 bytes"
    print(Table("roofline, Triton", title, COLUMNS, sorted(rows, key=lambda r: str(r[0]))).text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
