"""Every op with every instruction set, each in a process of its own: the choice is made once."""

from pathlib import Path

import pytest

from tests.ops.backends import require
from tests.ops.processes import run

COMPARISONS = sorted(path.stem for path in (Path(__file__).parent / "comparisons").glob("*.py"))

PROGRAM = f"""
from importlib import import_module
import torch  # before the extension, which needs its libraries
from synq_fast import _C
for name in {COMPARISONS}:
    print(name, import_module("tests.ops.comparisons." + name).main())
print(_C.cpu_isa())
"""


@pytest.mark.parametrize("isa", ["default", "avx2", "avx512"])
def test_every_op(isa):
    require("cpu")
    from synq_fast import _C

    if isa not in _C.supported_cpu_isas():
        pytest.skip(f"{isa} is not built or not on this processor")
    done = run(PROGRAM, SYNQ_FAST_CPU_ISA=isa)
    assert done.returncode == 0, done.stderr
    *lines, used = done.stdout.splitlines()
    assert used == isa
    counts = {name: int(count) for name, count in map(str.split, lines)}
    assert counts.keys() == set(COMPARISONS) and min(counts.values()) >= 9, counts
