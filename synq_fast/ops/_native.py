"""Loads the compiled extension, or says why it is not there."""

import importlib
import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

REINSTALL = "`pip install --no-build-isolation --force-reinstall --no-deps .` in the source folder"


def read_build_record() -> dict[str, Any]:
    """Returns what the build wrote about itself, or an empty dict if it never ran."""
    path = Path(__file__).parent.parent / "_build_info.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def load() -> tuple[ModuleType | None, str | None]:
    """Returns `(module, None)`, or `(None, reason)` when there are no native kernels."""
    record = read_build_record()
    if not record:
        return None, f"the package was not built; run {REINSTALL}"
    if not record["native"]:
        return None, str(record["reason"])
    # Checked before loading: C++ symbols of another torch may be missing, or worse, differ.
    if record["torch"] != torch.__version__:
        reason = f"built for torch {record['torch']}, running {torch.__version__}; run {REINSTALL}"
        warnings.warn(f"synq-fast runs without its native kernels: {reason}", stacklevel=2)
        return None, reason
    try:
        return importlib.import_module("synq_fast._C"), None
    except ImportError as error:
        reason = f"the extension cannot be loaded ({error}); run {REINSTALL}"
        warnings.warn(f"synq-fast runs without its native kernels: {reason}", stacklevel=2)
        return None, reason


EXTENSION, CPU_REASON = load()


def cuda_reason() -> str | None:
    """Returns why there are no compiled CUDA kernels, or None if there are."""
    if EXTENSION is None:
        return CPU_REASON
    if EXTENSION.cuda_version is None:
        return str(read_build_record()["cuda_reason"])
    return None


CUDA_REASON = cuda_reason()
