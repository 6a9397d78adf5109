"""Compiles CUDA sources for the CPU and lays out memory for them."""

import contextlib
import ctypes
import functools
import hashlib
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.cuda_toolkit import find_cuda_include
from tests.once import filled

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
# Compiled and linked apart: faults.h takes the place of the checks' runtime. With the checks -O1
# takes twice as long to compile and makes the runs little faster.
FLAGS = ["-std=c++17", "-Og", "-ffp-contract=off", "-fno-extern-tls-init", "-fno-gnu-unique"]
CHECKS = "-fsanitize=alignment,bounds,shift,signed-integer-overflow,null"
SUFFIXES = {".h", ".cpp", ".cuh", ".cu"}
KEPT_SECONDS = 24 * 3600
LIBRARY = "kernels.so"
LIBRARIES: dict[str, ctypes.CDLL] = {}


def build(name: str) -> ctypes.CDLL:
    """Compiles `<name>.cpp` of this folder, once until anything changes that it could be made of.

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
    kept = ROOT / "build" / "emulated"
    kept.mkdir(parents=True, exist_ok=True)
    folder = kept / f"{name}-{state(compiler, include)}"
    filled(folder, lambda folder: compile_library(compiler, include, name, folder))
    return LIBRARIES.setdefault(name, ctypes.CDLL(str(folder / LIBRARY)))


@functools.cache
def state(compiler: str, include: Path) -> str:
    """Says in one word what the compiler, its headers and all sources are."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    found = hashlib.sha256(version + " ".join([*FLAGS, CHECKS, str(include)]).encode())
    for path in (include / "cuda_runtime_api.h", *sources()):
        found.update(f"{path.name} {path.stat().st_size} ".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def sources() -> list[Path]:
    """All that a library could include; byte code, which appears while the tests run, is not."""
    folders = (ROOT / "csrc", FOLDER)
    return sorted(p for folder in folders for p in folder.rglob("*") if p.suffix in SUFFIXES)


def compile_library(compiler: str, include: Path, name: str, folder: Path) -> None:
    remove_older(folder, name)
    source, object_file = FOLDER / f"{name}.cpp", folder / "object.o"
    run(compiler, *FLAGS, CHECKS, "-w", "-fPIC", f"-I{include}", "-c", source, "-o", object_file)
    run(compiler, "-shared", object_file, "-o", folder / LIBRARY)
    object_file.unlink()


def remove_older(folder: Path, name: str) -> None:
    """Removes a library's folders of other sources, unless another run could still need them."""
    for other in folder.parent.glob(f"{name}-*"):
        with contextlib.suppress(FileNotFoundError):
            unused = time.time() - other.stat().st_mtime
            if not other.name.startswith(folder.name) and unused > KEPT_SECONDS:
                shutil.rmtree(other) if other.is_dir() else other.unlink()


def run(*command: str | Path) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def shifted(x: torch.Tensor, shift: int) -> torch.Tensor:
    """Returns a copy that starts `shift` elements after a 16-byte boundary, amid filler."""
    filler = float("nan") if x.is_floating_point() else -128
    buffer = torch.full((x.numel() + 64,), filler, dtype=x.dtype)
    start = (-buffer.data_ptr() % 16) // x.element_size() + shift
    return buffer[start : start + x.numel()].copy_(x.reshape(-1)).view(x.shape)
