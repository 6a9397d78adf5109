"""Objects of the CUDA sources, compiled once for every architecture and every test."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.compile.test_cuda_compile import ARCHITECTURES, FLAGS, compile_cuda
from tests.once import made_once


class CudaObject(NamedTuple):
    """An object, what `ptxas -v` said of it, and the PTX of each architecture."""

    path: Path
    log: str
    ptx: dict[str, str]


@pytest.fixture(scope="session")
def cuda_object(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], CudaObject]:
    def compiled(source: Path) -> CudaObject:
        name = source.stem
        folder = made_once(tmp_path_factory, f"cuda_{name}", lambda folder: make(source, folder))
        ptx = {arch: folder / f"{name}.compute_{arch}.ptx" for arch in ARCHITECTURES}
        return CudaObject(
            folder / "object.o",
            (folder / "ptxas.log").read_text(),
            {arch: path.read_text() for arch, path in ptx.items()},
        )

    return compiled


def make(source: Path, folder: Path) -> None:
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    keep = ["--keep", f"--keep-dir={folder}", "-o", str(folder / "object.o")]
    result = compile_cuda(source, "-c", "--threads=2", *FLAGS, *targets, "-Xptxas=-v", *keep)
    (folder / "ptxas.log").write_text(result.stdout + result.stderr)
    for path in folder.iterdir():
        if path.suffix not in (".o", ".log", ".ptx"):
            path.unlink()
