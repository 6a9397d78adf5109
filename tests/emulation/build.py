"""Compiles CUDA sources for the CPU and lays out memory for them."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.cuda_toolkit import find_cuda_include
from tests.once import made_once

CHECKS = "-fsanitize=alignment,bounds,shift,signed-integer-overflow,null"
LIBRARY = "kernels.so"
LIBRARIES: dict[str, ctypes.CDLL] = {}


def build(name: str, folders: pytest.TempPathFactory) -> ctypes.CDLL:
    """Compiles `<name>.cpp` of this folder once for all processes of a test run.

    Skips by name what the machine lacks.
    """
    if name in LIBRARIES:
        return LIBRARIES[name]
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ not found")
    include = find_cuda_include()
    if include is None:
        pytest.skip("the CUDA toolkit's headers were not found")
    source = Path(__file__).parent / f"{name}.cpp"
    folder = made_once(
        folders,
        f"emulated_{name}",
        lambda folder: compile_library(compiler, include, source, folder),
    )
    return LIBRARIES.setdefault(name, ctypes.CDLL(str(folder / LIBRARY)))


def compile_library(compiler: str, include: Path, source: Path, folder: Path) -> None:
    # Compiled and linked apart: faults.h takes the place of the checks' runtime. With the checks
    # -O1 takes twice as long to compile and makes the runs little faster.
    flags = ["-std=c++17", "-Og", "-ffp-contract=off", "-fno-extern-tls-init", "-fno-gnu-unique"]
    object_file = folder / "object.o"
    run(compiler, *flags, CHECKS, "-w", "-fPIC", f"-I{include}", "-c", source, "-o", object_file)
    run(compiler, "-shared", object_file, "-o", folder / LIBRARY)


def run(*command: str | Path) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def shifted(x: torch.Tensor, shift: int) -> torch.Tensor:
    """Returns a copy that starts `shift` elements after a 16-byte boundary, amid filler."""
    filler = float("nan") if x.is_floating_point() else -128
    buffer = torch.full((x.numel() + 64,), filler, dtype=x.dtype)
    start = (-buffer.data_ptr() % 16) // x.element_size() + shift
    return buffer[start : start + x.numel()].copy_(x.reshape(-1)).view(x.shape)
