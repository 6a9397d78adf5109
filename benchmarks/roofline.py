"""Predicts how fast the CUDA kernels are from their machine code, where there is no GPU.

python -m benchmarks.roofline --against main

Predictions, not measurements: docs/gpu.md says what they rest on and what they leave out.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .machine_code import Kernel, MachineCodeError, compile_kernels
from .tables import Table

LATENCY = 0.65e-6  # of a load from device memory that is busy, seconds
CACHED_LATENCY = 0.3e-6  # of one from the L2 cache
LAUNCH = 2e-6  # between two kernels of a recorded graph


@dataclass(frozen=True)
class Card:
    """A GPU: bytes a second of a large copy, multiprocessors, clock in Hz.

    Attributes:
        cache: Bytes a second to and from the L2 cache.
        product: Cycles that a multiprocessor takes for a product of 16 x 8 x 8 TF32 numbers.
    """

    copy: float
    multiprocessors: int
    clock: float
    registers: int = 65536
    shared_bytes: int = 227 * 1024
    threads: int = 2048
    cache: float = 5.5e12
    product: float = 2.0


CARDS = {
    "H100": Card(3.0e12, 132, 1.7e9),
    "A100": Card(1.35e12, 108, 1.4e9, shared_bytes=163840, cache=4.0e12),
}


@dataclass(frozen=True)
class Launch:
    """One launch, or several alike.

    Attributes:
        source: The CUDA source, without `.cu`.
        kernel: A pattern of its mangled name.
        moved: Bytes read from and written to device memory.
        items: Pieces of work that blocks take in turns.
        threads: Of a block.
        busy: Share of them that load anything.
        rounds: Loads from the cache that wait for each other, beyond the loop.
        times: How often.
        in_flight: Bytes of a thread's loads that wait together, where rows shorter than the loop's
            turn or a block's barriers leave fewer than the loop has.
        cached: Bytes that stay in the L2 cache.
        turns: Of the product loop, all warps of a piece of work together; 0 if there is none.
        beside: Instructions of all warps outside that loop.
        shared_bytes: Shared memory that the launch asks for.
    """

    source: str
    kernel: str
    moved: float = 0
    items: int = 1
    threads: int = 256
    busy: float = 1.0
    rounds: float = 0
    times: int = 1
    in_flight: float | None = None
    cached: float = 0
    turns: int = 0
    beside: int = 0
    shared_bytes: int = 0


@dataclass(frozen=True)
class Case:
    """What is predicted: an op on one input, as the launches of two versions of the code."""

    name: str
    before: tuple[Launch, ...]
    after: tuple[Launch, ...]

    @property
    def needed(self) -> float:
        """Bytes that the op has to move, of the version that moves least."""
        versions = (self.before, self.after)
        return min(sum(x.moved * x.times for x in launches) for launches in versions)


@dataclass(frozen=True)
class Prediction:
    """Of one launch: what limits it and how long it takes, seconds."""

    seconds: float
    blocks: int
    kernel: Kernel
    limit: str


def resident_blocks(card: Card, kernel: Kernel, threads: int, shared_bytes: int = 0) -> int:
    """Returns how many blocks one multiprocessor holds at once."""
    warps = threads // 32
    of_warp = math.ceil(kernel.registers * 32 / 256) * 256
    by_registers = card.registers // 4 // of_warp * 4 // warps
    by_shared = card.shared_bytes // (kernel.shared_bytes + shared_bytes + 1024)
    return max(1, min(by_registers, by_shared, card.threads // threads, 32))


def predict(card: Card, kernel: Kernel, launch: Launch) -> Prediction:
    """Returns the time by what is slowest: memory, loads that wait, issued instructions."""
    blocks = resident_blocks(card, kernel, launch.threads, launch.shared_bytes)
    active = min(launch.items, blocks * card.multiprocessors)
    seconds = LAUNCH + launch.rounds * CACHED_LATENCY
    if not launch.moved:
        return Prediction(seconds * launch.times, blocks, kernel, "latency")
    if launch.turns:
        return _predict_products(card, kernel, launch, blocks)
    if kernel.loop is None:
        raise MachineCodeError(f"{kernel.name} has no loop that loads")
    loop = kernel.loop
    in_flight = launch.in_flight or loop.in_flight

    def rates(running: int) -> dict[str, float]:
        waiting = running * launch.threads * launch.busy * in_flight
        issued = min(running, card.multiprocessors) * 4 * card.clock / loop.instructions
        return {
            "memory": card.copy,
            "loads in flight": waiting / LATENCY * (1 + loop.stored / loop.loaded),
            "instructions": issued * 32 * launch.busy * (loop.loaded + loop.stored),
        }

    # Whole waves of blocks, then those that are left over.
    for items in (launch.items // active * active, launch.items % active):
        if items:
            rate = min(rates(min(items, active)).values())
            seconds += launch.moved * items / launch.items / rate
    found = rates(active)
    limit = min(found, key=lambda name: found[name])
    return Prediction(seconds * launch.times, blocks, kernel, limit)


def _predict_products(card: Card, kernel: Kernel, launch: Launch, blocks: int) -> Prediction:
    """The same of a kernel of products, where tensor cores can be what is slowest."""
    loop = kernel.product_loop
    if loop is None:
        raise MachineCodeError(f"{kernel.name} has no loop with products")
    active = min(launch.items, blocks * card.multiprocessors)

    def times(items: int) -> dict[str, float]:
        share = items / launch.items
        rounds = math.ceil(items / card.multiprocessors)
        work = launch.turns * loop.instructions + launch.beside
        return {
            "memory": launch.moved * share / card.copy,
            "cache": (launch.moved + launch.cached) * share / card.cache,
            "instructions": rounds * work / 4 / card.clock,
            "tensor cores": rounds * launch.turns * loop.products * card.product / card.clock,
        }

    seconds = LAUNCH
    for items in (launch.items // active * active, launch.items % active):
        if items:
            seconds += max(times(items).values())
    found = times(launch.items)
    limit = max(found, key=lambda name: found[name])
    return Prediction(seconds * launch.times, blocks, kernel, limit)


FLOAT, HALF = "f", "13__nv_bfloat16"
ELEMENTS = 256 * 64 * 56 * 56


def _statistics(kind: str, size: int) -> Case:
    old, new = ("Li4", "Li4") if size == 4 else ("Li8", "Li4")
    items = 2 * 64 if size == 4 else 64
    nbytes = ELEMENTS * size
    name = "bn_statistics_loss"
    return Case(
        f"{name} (256,64,56,56) {'float32' if size == 4 else 'bfloat16'}",
        (
            Launch(name, f"column_moments_kernelI{kind}{old}E", nbytes, items),
            Launch(name, "finish_kernel", rounds=2 * 64 / 4),
        ),
        (
            Launch(name, f"column_moments_kernelI{kind}{new}E", nbytes, 2048),
            Launch(name, "finish_kernel", rounds=2 * 1024 / 32 / 8),
            Launch(name, "total_kernel", rounds=1),
        ),
    )


def _network() -> Case:
    """The BatchNorm inputs of ResNet-20, batch 256: channels, side, layers, items then and now."""
    layers = ((16, 32, 7, 64, 512), (32, 16, 6, 64, 256), (64, 8, 6, 128, 128))
    name, kernel = "bn_statistics_loss", "column_moments_kernelIfLi4E"
    before = [
        Launch(name, kernel, 256 * c * side**2 * 4, items, busy=0.5 if c == 16 else 1, times=count)
        for c, side, count, items, _ in layers
    ]
    moved = sum(256 * c * side**2 * 4 * count for c, side, count, *_ in layers)
    return Case(
        "bn_statistics_losses, ResNet-20 at 256, float32",
        (*before, Launch(name, "finish_kernel", rounds=32, times=19), Launch(name, "total_kernel")),
        (
            Launch(name, kernel, moved, sum(count * new for _, _, count, _, new in layers)),
            Launch(name, "finish_kernel", rounds=2 * 512 / 32 / 8),
            Launch(name, "total_kernel", rounds=2),
        ),
    )


def _statistics_gradient(kind: str, size: int) -> Case:
    count = "Li4E" if size == 4 else "Li8E"
    nbytes = 2 * ELEMENTS * size
    return Case(
        f"bn_statistics_loss backward (256,64,56,56) {'float32' if size == 4 else 'bfloat16'}",
        (Launch("bn_statistics_loss", f"15gradient_kernelI{kind}{count}", nbytes, 1 << 20),),
        (Launch("bn_statistics_gradient", f"column_gradient_kernelI{kind}{count}", nbytes, 2048),),
    )


def _moments(kind: str, size: int) -> Case:
    name, nbytes = "channel_moments", ELEMENTS * size
    finish = Launch(name, "finish_moments_kernel", rounds=2)
    return Case(
        f"{name} (256,64,56,56) {'float32' if size == 4 else 'bfloat16'}",
        (Launch(name, f"column_moments_kernelI{kind}E", nbytes, 2048), finish),
        (Launch(name, f"column_moments_kernelI{kind}Li4E", nbytes, 2048), finish),
    )


def _sums(operation: str, source: str, kind: str, size: int, tensors: int) -> Case:
    kernel = rf"column_sums_kernelI\w*{operation}I{kind}EE"
    nbytes = tensors * ELEMENTS * size
    finish = Launch(source, rf"finish_sums_kernelI\w*{operation}I{kind}EE", rounds=4)
    return Case(
        f"{operation} (256,64,56,56) {'float32' if size == 4 else 'bfloat16'}",
        (Launch(source, kernel + "E", nbytes, 2048), finish),
        (Launch(source, kernel + "Li4E", nbytes, 2048), finish),
    )


def _maps(layout: str, weighting: int, images: int = 256) -> Case:
    last = layout == "channels_last"
    nbytes = 2 * images * 2048 * 49 * 4
    # Grad-CAM++ used to read the activations twice.
    old = nbytes * (1.5 if weighting == 1 else 1)
    flags = "Lb1ELb1E" if last else "Lb0ELb0E"
    form = "column" if last else "row"
    kernel = rf"{form}_coarse_kernelIf\w*WeightingE{weighting}ELj2E"
    kernel += "Lb1E" if last else "Lj4E"
    name = ("grad_cam", "grad_cam_plus_plus")[weighting]
    # Of 49 positions a lane of the old kernel had two at once in one half of its work, four in the
    # other; with channels innermost a pack and a half between barriers, then four.
    busy, in_flight = (1.0, 30) if last else (49 / 64, 10.7)
    shares = 8 if images == 256 else 32
    return Case(
        f"{name} ({images},2048,7,7) float32 {layout}, without the resizing",
        (
            Launch(
                "grad_cam", f"13coarse_kernelIf{flags}", old, images, 1024, busy,
                in_flight=in_flight,
            ),
        ),
        (
            Launch("grad_cam", kernel, nbytes, images * shares, busy=49 / 64),
            Launch("grad_cam", "join_kernel", rounds=shares / 4),
        ),
    )  # fmt: skip


FILTERED = ((256, 224), (64, 224), (256, 32))
CACHE = 38 << 20  # bytes between two passes that stay in the L2 cache
# Instructions of all warps for a tile's loads, folds and stores, a value; counted by hand.
BESIDE = {"before": 6500 / 7168, "after": 4400 / 7168}


def _low_pass(images: int, side: int, kind: str, size: int) -> Case:
    """Two passes over contiguous images through float32; sides of a multiple of four."""
    count = 3 * images * side**2
    tiles, middle = count // side // 32, 4 * count
    half = side // 2
    parts = (half // 2 + 1, (half - 1) // 2, (half + 1) // 2, half // 2)
    turns = {
        rows: sum(math.ceil(part / rows) * math.ceil(part / 8) for part in parts)
        for rows in (16, 32)
    }

    def launches(code: str, rows: int, chunks: int, table: int) -> tuple[Launch, ...]:
        # The last chunk may be smaller: as if all were alike.
        stays = middle // chunks <= CACHE
        return tuple(
            Launch(
                "low_pass", rf"15low_pass_kernelI{source}{target}Li32E",
                (size * count + (0 if stays else middle)) / chunks, math.ceil(tiles / chunks),
                times=chunks, cached=middle / chunks if stays else 0, turns=turns[rows],
                beside=round(BESIDE[code] * 32 * side),
                shared_bytes=4 * ((side + 8) * 40 + table),
            )
            for source, target in ((kind, FLOAT), (FLOAT, kind))
        )  # fmt: skip

    chunks = math.ceil(3 * images / (CACHE // (4 * side**2)))
    return Case(
        f"low_pass ({images},3,{side},{side}) {'float32' if size == 4 else 'bfloat16'} contiguous",
        launches("before", 16, 1, side + 34),
        launches("after", 32, chunks, 0),
    )


def cases() -> list[Case]:
    """Returns what is predicted: channels_last where nothing else is said."""
    types = ((FLOAT, 4), (HALF, 2))
    relu = "relu_fake_quantize"
    return [
        *(_statistics(*kind) for kind in types),
        _network(),
        *(_statistics_gradient(*kind) for kind in types),
        *(_moments(*kind) for kind in types),
        *(_sums("ResidualReluGradients", relu, *kind, 5) for kind in types),
        *(_sums("LearnedGradient", "fake_quantize_learned", *kind, 3) for kind in types),
        _maps("contiguous", 0),
        _maps("channels_last", 0),
        _maps("contiguous", 0, 32),
        _maps("channels_last", 0, 32),
        _maps("contiguous", 1),
        _maps("channels_last", 1),
        *(_low_pass(*shape, *kind) for shape in FILTERED for kind in types),
    ]


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


def version(root: Path, reference: str, folder: Path) -> Path:
    """Writes the C++ sources of a commit into a folder."""
    command = ["git", "-C", str(root), "archive", reference, "csrc"]
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
    card: Card, case: Case, code: str, launches: Sequence[Launch], tree: Tree
) -> tuple[str | float | None, ...]:
    """Returns one line of the table; the columns between bytes and time are the main kernel's."""
    predictions = [predict(card, tree.kernel(launch), launch) for launch in launches]
    main = max(range(len(launches)), key=lambda i: predictions[i].seconds)
    found, launch = predictions[main], launches[main]
    seconds = sum(prediction.seconds for prediction in predictions)
    loop = None if launch.turns else found.kernel.loop
    instructions = loop.instructions / ((loop.loaded + loop.stored) / 4) if loop else None
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
                if old:
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
