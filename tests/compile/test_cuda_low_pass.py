"""The CUDA low-pass kernel uses tensor cores, in PTX and in machine code, and wide accesses."""

from pathlib import Path

import pytest

from tests.compile.ptx_checks import entries, widest_access
from tests.compile.sass_checks import disassemble, disassembler
from tests.compile.test_cuda_compile import ARCHITECTURES, FLAGS, ptx_of

pytestmark = pytest.mark.compile

SOURCE = Path(__file__).parents[2] / "csrc" / "cuda" / "low_pass.cu"
PRODUCT = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"


def test_ptx(tmp_path: Path) -> None:
    kernels = entries(ptx_of(SOURCE, ARCHITECTURES[0], tmp_path, *FLAGS))
    assert len(kernels) == 5 * 2  # pairs of input and output types, lines in a tile
    for name, instructions in kernels.items():
        # Jobs x groups of eight lines x (two corrections and the product).
        assert instructions[PRODUCT] == 8 * 3, name
        assert any(key.startswith("cvt.rna.tf32") for key in instructions), name
        assert not any(key.startswith(("atom", "red", "st.local")) for key in instructions), name
        if "IffL" in name:
            assert widest_access(instructions, "ld") == 128, name
            assert widest_access(instructions, "st") == 128, name


def test_machine_code(cuda_object) -> None:
    functions = disassemble(disassembler(), cuda_object(SOURCE).path)
    assert len(functions) == 10 * len(ARCHITECTURES)
    for arch, name, code in functions:
        assert code.count("HMMA.1688.F32.TF32") >= 8 * 3, (arch, name)
