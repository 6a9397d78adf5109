"""What machine code does with memory: how often each kernel stores how many bits at a time."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.machine_code import disassembler_folders
from tests.cuda_toolkit import find_nvcc

ARCHITECTURE = re.compile(r"^\s*code for (sm_\d+)\w*$", re.MULTILINE)
STORE = re.compile(r"\*/\s+(?:@!?U?P\w+\s+)?STG((?:\.\w+)*)\s")
WIDTH = re.compile(r"\.(?:[US]?(8|16|64)|(128|256))(?=\.|$)")


class Function(NamedTuple):
    """One kernel for one architecture, as the disassembler shows it."""

    arch: str
    name: str
    code: str


def find_disassembler() -> str | None:
    """Returns cuobjdump: from PATH, beside nvcc, or the one that Triton brings along."""
    folders = disassembler_folders(find_nvcc())
    beside = (shutil.which("cuobjdump", path=str(folder)) for folder in folders)
    return shutil.which("cuobjdump") or next((path for path in beside if path), None)


def disassembler() -> str:
    """Returns cuobjdump; skips the test without one."""
    found = find_disassembler()
    if found is None:
        pytest.skip("cuobjdump not found")
    return found


def _release(tool: str) -> tuple[int, ...]:
    """Returns the CUDA release of a tool."""
    text = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", text)
    assert match, text
    return int(match[1]), int(match[2])


def disassemble(disassembler: str, binary: Path) -> list[Function]:
    """Returns the kernels of every architecture in an object or a cubin.

    Skips the test where the disassembler is older than the compiler and cannot read its objects.
    """
    dump = subprocess.run([disassembler, "-sass", binary], capture_output=True, text=True)
    nvcc = find_nvcc()
    if dump.returncode and nvcc is not None and _release(disassembler) < _release(str(nvcc)):
        pytest.skip(f"{disassembler} is older than nvcc: {dump.stderr.strip()}")
    dump.check_returncode()
    parts = ARCHITECTURE.split(dump.stdout)
    return [
        Function(arch, function.split()[0], function)
        for arch, code in zip(parts[1::2], parts[2::2], strict=True)
        for function in code.split("Function : ")[1:]
    ]


def global_stores(code: str) -> Counter[int]:
    """Returns how many stores to global memory there are of each number of bits."""
    widths = (WIDTH.search(modifiers) for modifiers in STORE.findall(code))
    return Counter(int(match[1] or match[2]) if match else 32 for match in widths)
