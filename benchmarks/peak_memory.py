"""Peak resident memory of one call, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import ctypes, gc, sys, torch
{setup}
warm_up()
gc.collect()
trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
trim(0)

def resident(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name + ":"))

with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")
before = resident("VmRSS")
kept = call()
print(1024 * (resident("VmHWM") - before))
"""


def peak_bytes(setup: str) -> int:
    """Measures what a call adds to the resident memory at its peak. Linux only.

    Args:
        setup: Python code that defines `call`, which is measured and whose result is kept, and
            `warm_up`, which does the same on something small first.

    Returns:
        Bytes; reproducible to about a mebibyte.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(setup=setup)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the measured program failed: {done.stderr.strip()}")
    return int(done.stdout.splitlines()[-1])
