"""The CUDA low-pass kernel uses tensor cores, in PTX and in machine code, and wide accesses."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.compile.ptx_checks import entries, widest_access
from tests.compile.test_cuda_compile import ARCHITECTURES, FLAGS, compile_cuda, ptx_of
from tests.cuda_toolkit import find_nvcc

pytestmark = pytest.mark.compile

SOURCE = Path(__file__).parents[2] / "csrc" / "cuda" / "low_pass.cu"
PRODUCT = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"


def find_disassembler() -> str | None:
    """Returns cuobjdump: from PATH, beside nvcc, or the one that Triton brings along."""
    nvcc = find_nvcc()
    folders = [nvcc.parent] if nvcc is not None else []
    triton = find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    beside = (shutil.which("cuobjdump", path=str(folder)) for folder in folders)
    return shutil.which("cuobjdump") or next((path for path in beside if path), None)


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


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_machine_code(arch: str, tmp_path: Path) -> None:
    disassembler = find_disassembler()
    if disassembler is None:
        pytest.skip("cuobjdump not found")
    target = tmp_path / "low_pass.cubin"
    compile_cuda(SOURCE, "-cubin", f"-arch=sm_{arch}", *FLAGS, "-o", str(target))
    dump = subprocess.run(
        [disassembler, "-sass", target], capture_output=True, text=True, check=True
    )
    functions = dump.stdout.split("Function : ")[1:]
    assert len(functions) == 10
    for function in functions:
        name = function.split()[0]
        assert function.count("HMMA.1688.F32.TF32") >= 8 * 3, name
        assert "STL" not in function and "LDL" not in function, name
