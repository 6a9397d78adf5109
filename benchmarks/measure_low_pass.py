"""Finds where the low-pass filter should change from dense products to half spectra.

Times both methods of `torch.ops.synq_fast.low_pass` on square and odd images of growing size and
prints, for each kind, which one is the faster and by how much. `csrc/ops/low_pass_choice.h` holds
what came out.

    python -m benchmarks.measure_low_pass [--threads 2] [--rounds 7] [--elements 2000000]
"""

from __future__ import annotations

import argparse
from functools import partial

import torch

from synq_fast import ops

from . import harness

# Powers of two suit the transforms, primes suit them least; 224 and 299 are what networks read.
SIZES = (16, 32, 33, 64, 96, 127, 128, 160, 224, 256, 299, 384, 509, 512, 768, 1021, 1024, 1536)
KINDS = ("gaussian", "butterworth")


def measure(size: int, kind: str, elements: int, rounds: int) -> tuple[float, float]:
    """Returns the median seconds of the dense products and of the half spectra."""
    assert ops.available_backends()[harness.DEVICE.type] is None
    planes = max(1, elements // size**2)
    x = torch.randn(planes, 1, size, size, device=harness.DEVICE)
    op = torch.ops.synq_fast.low_pass
    cutoff = 0.36 * size
    columns = {method: partial(op, x, cutoff, kind, 2, method) for method in ("matrix", "spectrum")}
    torch.testing.assert_close(columns["matrix"](), columns["spectrum"](), atol=1e-5, rtol=0)
    timings = harness.interleave(columns, rounds=rounds, warmup=1)
    return timings["matrix"].median, timings["spectrum"].median


def main() -> None:
    """Prints one line for each kind and size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=harness.THREADS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--elements", type=int, default=2_000_000, help="of each input, about")
    arguments = parser.parse_args()
    kinds = KINDS if harness.DEVICE.type == "cpu" else KINDS[:1]
    with harness.fixed_threads(arguments.threads):
        for kind in kinds:
            for size in SIZES:
                try:
                    matrix, spectrum = measure(size, kind, arguments.elements, arguments.rounds)
                except ValueError as error:  # a side that the device's kernel does not take
                    print(f"{kind:<12}{size:>6}  {error}")
                    continue
                print(
                    f"{kind:<12}{size:>6}  matrix {matrix * 1e3:8.3f} ms  "
                    f"spectrum {spectrum * 1e3:8.3f} ms  {spectrum / matrix:6.2f}x",
                    flush=True,
                )


if __name__ == "__main__":
    main()
