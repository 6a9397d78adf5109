"""How long a kernel takes on a GPU, from its machine code and what a launch moves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .machine_code import Kernel, MachineCodeError

LATENCY = 0.65e-6  # of a load from device memory that is busy, seconds
CACHED_LATENCY = 0.3e-6  # of one from the L2 cache
LAUNCH = 2e-6  # between two kernels of a recorded graph


@dataclass(frozen=True)
class Card:
    """A GPU: bytes a second of a large copy, multiprocessors, clock in Hz.

    Attributes:
        cache: Bytes a second to and from the L2 cache.
        product: Cycles that a multiprocessor takes for a product of 16 x 8 x 8 TF32 numbers.
        int8: Products of two int8 codes that a multiprocessor adds up in a cycle.
        bf16: The same of bfloat16 numbers.
    """

    copy: float
    multiprocessors: int
    clock: float
    registers: int = 65536
    shared_bytes: int = 227 * 1024
    threads: int = 2048
    cache: float = 5.5e12
    product: float = 2.0
    int8: float = 4096.0
    bf16: float = 2048.0


CARDS = {
    "H100": Card(3.0e12, 132, 1.7e9),
    "A100": Card(1.35e12, 108, 1.4e9, shared_bytes=163840, cache=4.0e12, int8=2048.0, bf16=1024.0),
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
class Prediction:
    """Of one launch: what limits it and how long it takes, seconds.

    Attributes:
        rates: Bytes a second that each limit would allow; empty of products.
    """

    seconds: float
    blocks: int
    kernel: Kernel
    limit: str
    rates: Mapping[str, float] = field(default_factory=dict)


def resident_blocks(card: Card, kernel: Kernel, threads: int, shared_bytes: int = 0) -> int:
    """Returns how many blocks one multiprocessor holds at once."""
    warps = threads // 32
    of_warp = math.ceil(kernel.registers * 32 / 256) * 256
    by_registers = card.registers // 4 // of_warp * 4 // warps
    by_shared = card.shared_bytes // (kernel.shared_bytes + shared_bytes + 1024)
    return max(1, min(by_registers, by_shared, card.threads // threads, 32))


def bytes_of_turn(kernel: Kernel, launch: Launch) -> float:
    """Returns what a thread loads and stores in a turn of the hot loop.

    On the way through a kernel without one it also loads what belongs to channels: there it is its
    share of the bytes that the launch moves.
    """
    if kernel.loop is not None:
        return kernel.loop.loaded + kernel.loop.stored
    return launch.moved / (launch.items * launch.threads * launch.busy)


def predict(card: Card, kernel: Kernel, launch: Launch) -> Prediction:
    """Returns the time by what is slowest: memory, loads that wait, issued instructions."""
    blocks = resident_blocks(card, kernel, launch.threads, launch.shared_bytes)
    active = min(launch.items, blocks * card.multiprocessors)
    seconds = LAUNCH + launch.rounds * CACHED_LATENCY
    if not launch.moved:
        return Prediction(seconds * launch.times, blocks, kernel, "latency")
    if launch.turns:
        return _predict_products(card, kernel, launch, blocks)
    loop = kernel.loop or kernel.way
    if loop is None:
        raise MachineCodeError(f"{kernel.name} has no loop that loads, and no way through it does")
    in_flight, needed = launch.in_flight or loop.in_flight, bytes_of_turn(kernel, launch)

    def rates(running: int) -> dict[str, float]:
        waiting = running * launch.threads * launch.busy * in_flight
        issued = min(running, card.multiprocessors) * 4 * card.clock / loop.instructions
        return {
            "memory": card.copy,
            "loads in flight": waiting / LATENCY * needed / loop.loaded,
            "instructions": issued * 32 * launch.busy * needed,
        }

    # Whole waves of blocks, then those that are left over.
    for items in (launch.items // active * active, launch.items % active):
        if items:
            rate = min(rates(min(items, active)).values())
            seconds += launch.moved * items / launch.items / rate
    found = rates(active)
    limit = min(found, key=lambda name: found[name])
    return Prediction(seconds * launch.times, blocks, kernel, limit, found)


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
