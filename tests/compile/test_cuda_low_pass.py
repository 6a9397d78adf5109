"""The CUDA low-pass kernel uses tensor cores, in PTX and in machine code, and wide accesses."""

from pathlib import Path

import pytest

from benchmarks.machine_code import product_loop
from tests.compile.ptx_checks import entries, widest_access
from tests.compile.sass_checks import disassemble, disassembler
from tests.compile.test_cuda_compile import ARCHITECTURES, FLAGS, ptx_of

pytestmark = pytest.mark.compile

SOURCE = Path(__file__).parents[2] / "csrc" / "cuda" / "low_pass.cu"
READABLE = ("sm_80", "sm_90")  # whose disassembly benchmarks.machine_code reads
PRODUCT = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"


def test_ptx(tmp_path: Path) -> None:
    kernels = entries(ptx_of(SOURCE, ARCHITECTURES[0], tmp_path, *FLAGS))
    assert len(kernels) == 5 * 2  # pairs of input and output types, lines in a tile
    for name, instructions in kernels.items():
        # Blocks of 16 rows x groups of eight lines x (two corrections and the product; the product
        # alone, of values that were rounded before).
        assert instructions[PRODUCT] == 8 * (3 + 1), name
        assert any(key.startswith("cvt.rna.tf32") for key in instructions), name
        assert not any(key.startswith(("atom", "red", "st.local")) for key in instructions), name
        if "IffL" in name:
            assert widest_access(instructions, "ld") == 128, name
            assert widest_access(instructions, "st") == 128, name


def test_machine_code(cuda_object) -> None:
    functions = disassemble(disassembler(), cuda_object(SOURCE).path)
    assert len(functions) == 10 * len(ARCHITECTURES)
    for arch, name, code in functions:
        assert code.count("HMMA.1688.F32.TF32") >= 8 * (3 + 1), (arch, name)
        # A turn has two packs of the prepared matrix and nothing else from global memory; its
        # instructions are the loads of lines, two splits of each line's value, and three of each
        # factor's.
        if arch not in READABLE:
            continue
        products = 8 * 3 if "Li32E" in name else 4 * 3
        loop = product_loop(code)
        assert loop is not None and loop.products == products, (arch, name)
        assert loop.loaded == 2 * 16 and loop.stored == 0, (arch, name, loop)
        assert loop.instructions <= 3 * products + 24, (arch, name, loop)
