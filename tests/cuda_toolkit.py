"""Where the CUDA compiler and its headers are, if anywhere."""

import os
import shutil
import sysconfig
from pathlib import Path


def _folders() -> list[Path]:
    """Returns the places a toolkit may be: chosen, on PATH's compiler, usual, from pip."""
    folders = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    # Where PATH has a link, the toolkit lies around its target; a script tells nothing.
    on_path = shutil.which("nvcc")
    if on_path is not None:
        folders.append(Path(on_path).resolve().parent.parent)
    folders.append(Path("/usr/local/cuda"))
    nvidia = Path(sysconfig.get_path("purelib")) / "nvidia"
    folders += [*nvidia.glob("cu[0-9]*"), nvidia / "cuda_nvcc", nvidia / "cuda_runtime"]
    return folders


def find_nvcc() -> Path | None:
    """Returns the CUDA compiler: PATH, CUDA_HOME, the usual folder, pip's packages."""
    on_path = shutil.which("nvcc")
    if on_path is not None:
        return Path(on_path)
    candidates = (folder / "bin" / "nvcc" for folder in _folders())
    return next((path for path in candidates if path.is_file()), None)


def find_cuda_include() -> Path | None:
    """Returns the folder of cuda_runtime.h and cuda_fp16.h."""
    candidates = (folder / "include" for folder in _folders())
    names = ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h")
    return next((path for path in candidates if all((path / n).is_file() for n in names)), None)
