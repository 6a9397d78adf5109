"""Measures a bank in memory and one that streams from its shards: memory and steps per second.

Writes noise of the published size into a temporary folder and takes batches from it, each time in a
fresh process. "own memory" is what the process holds beyond its libraries and what the kernel
cannot take back (anonymous pages; pages of the mapped files are the kernel's cache). Between two
batches the process computes for a while, as a step does; "waits" is what a step then waits for its
images, as read and not yet cropped. "cold" first asks the kernel to forget the files.

    python -m benchmarks.measure_bank [--images 5120] [--size 224] [--batch 16] [--steps 60]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from synq_fast.bank.assembly import BankAssembly
from synq_fast.bank.batches import BatchSource, Filter
from synq_fast.bank.images import Bank, BankFolder, ImageBank
from synq_fast.bank.streamed import StreamedBank

_SHARD = 256
_ROWS: tuple[dict[str, Any], ...] = tuple(
    {"bank": bank, "prefetch": prefetch, "cold": cold, "work": work}
    for work in (0.0, 0.1)
    for bank, prefetch, cold in (
        ("memory", 0, False),
        ("stream", 0, False),
        ("stream", 2, False),
        ("stream", 0, True),
        ("stream", 2, True),
    )
)


def shard_counts(images: int) -> list[int]:
    """Images of each shard."""
    return [min(_SHARD, images - start) for start in range(0, images, _SHARD)]


def write_bank(folder: Path, images: int, size: int) -> None:
    """Writes shards of noise that differ from each other."""
    store = BankFolder(folder, "noise")
    noise = torch.randn(_SHARD, 3, size, size)
    for index, count in enumerate(shard_counts(images)):
        store.write(index, ImageBank(noise[:count] + index, torch.arange(count)))


def open_bank(options: argparse.Namespace) -> Bank:
    """Opens the bank as a run does, every shard checked."""
    store = BankFolder(options.folder, "noise")
    counts, shape = shard_counts(options.images), (3, options.size, options.size)
    streamed = options.bank == "stream"
    joining = BankAssembly(counts, shape, torch.device("cpu"), streamed=streamed)
    for index in range(len(counts)):
        shard = store.read(index)
        assert shard is not None
        joining.put(index, shard)
    return joining.bank()


def forget_files(folder: Path, bank: Bank) -> None:
    """Asks the kernel to drop the shards from the process's maps and from its page cache."""
    assert isinstance(bank, StreamedBank)
    page, dont_need = os.sysconf("SC_PAGE_SIZE"), 4
    for images in bank._images:
        first = -(-images.data_ptr() // page) * page
        length = (images.data_ptr() + images.nbytes - first) // page * page
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), dont_need)
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class OwnMemory(threading.Thread):
    """Samples the anonymous memory of this process, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = self.now()
        self.done = threading.Event()
        self.start()

    @staticmethod
    def now() -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(x.split()[1]) for x in status if x.startswith("RssAnon:"))

    def run(self) -> None:
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self.now())

    def added(self) -> int:
        self.done.set()
        self.join()
        return max(self.peak, self.now()) - self.before


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Opens the bank and takes batches from it in this process."""
    torch.set_num_threads(options.threads)
    memory, work = OwnMemory(), torch.randn(512, 512)
    started = time.perf_counter()
    bank = open_bank(options)
    opened = time.perf_counter() - started
    source = BatchSource(
        bank, options.batch, (0.5, 1.0), Filter("none"), 0, prefetch=options.prefetch
    )
    if options.cold:
        forget_files(options.folder, bank)
    waits = []
    started = time.perf_counter()
    for step in range(options.steps):
        asked = time.perf_counter()
        source.inputs(step)
        waits.append(time.perf_counter() - asked)
        while time.perf_counter() - asked - waits[-1] < options.work:
            work @ work
    seconds = time.perf_counter() - started
    source.close()
    return {
        "opening_s": opened,
        "own_bytes": memory.added(),
        "steps_per_s": options.steps / seconds,
        "wait_s": statistics.median(waits[3:]),
    }


def main() -> None:
    """Prints one line for each way of keeping the bank."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5120)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        vars(options).update(options.one, folder=Path(options.one["folder"]))
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_bank(Path(folder), options.images, options.size)
        size = 12 * options.images * options.size**2 / 1e9
        print(f"{options.images} x 3 x {options.size} x {options.size}, {size:.2f} GB")
        for row in _ROWS:
            one = json.dumps({**row, "folder": folder})
            command = [sys.executable, "-m", "benchmarks.measure_bank", *sys.argv[1:], "--one", one]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout)
            state = "cold" if row["cold"] else "warm"
            print(
                f"{row['bank']:6}  prefetch {row['prefetch']}  {state}  "
                f"work {1e3 * row['work']:3.0f} ms  own memory {found['own_bytes'] / 1e6:5.0f} MB  "
                f"{found['steps_per_s']:6.1f} steps/s  waits {1e3 * found['wait_s']:5.1f} ms  "
                f"opening {found['opening_s']:4.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
