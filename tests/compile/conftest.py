"""Objects of the CUDA sources, compiled once for every architecture and every test."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.compile.test_cuda_compile import ARCHITECTURES, FLAGS, compile_cuda


class CudaObject(NamedTuple):
    """An object and what `ptxas -v` said of it."""

    path: Path
    log: str


@pytest.fixture(scope="session")
def cuda_object(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], CudaObject]:
    known: dict[Path, CudaObject] = {}

    def compiled(source: Path) -> CudaObject:
        if source not in known:
            target = tmp_path_factory.mktemp("cuda") / f"{source.stem}.o"
            targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
            result = compile_cuda(
                source, "-c", "--threads=2", *FLAGS, *targets, "-Xptxas=-v", "-o", str(target)
            )
            known[source] = CudaObject(target, result.stdout + result.stderr)
        return known[source]

    return compiled
