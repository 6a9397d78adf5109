"""Loads the compiled extension, or says why it is not there."""

import importlib
import json
import os
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from synq_fast.errors import SynqFastWarning

REINSTALL = "`pip install --no-build-isolation --force-reinstall --no-deps .` in the source folder"
BUILD_RECORD = Path(__file__).parent.parent / "_build_info.json"


def read_build_record() -> dict[str, Any]:
    """Returns what the build wrote about itself, or an empty dict if it never ran or was cut."""
    try:
        record = json.loads(BUILD_RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def load() -> tuple[ModuleType | None, str | None]:
    """Returns `(module, None)`, or `(None, reason)` when there are no native kernels."""
    # For those who mean it: setup.py does not compile, and nothing is warned of here.
    if os.environ.get("SYNQ_FAST_NATIVE") == "0":
        return None, "switched off by SYNQ_FAST_NATIVE=0"
    module, reason = _load(read_build_record())
    if reason is not None:
        warnings.warn(
            f"synq-fast runs without its native kernels; on the CPU its ops are plain PyTorch, "
            f"several times slower: {reason}. SYNQ_FAST_NATIVE=0 in the environment says that "
            "this is meant.",
            SynqFastWarning,
            stacklevel=3,
        )
    return module, reason


def _load(record: dict[str, Any]) -> tuple[ModuleType | None, str | None]:
    if not record:
        return None, f"the package was not built, or not to the end; run {REINSTALL}"
    if not record.get("native"):
        return None, str(record.get("reason") or f"the build does not say why; run {REINSTALL}")
    # Checked before loading: C++ symbols of another torch may be missing, or worse, differ.
    if record.get("torch") != torch.__version__:
        built = record.get("torch")
        return None, f"built for torch {built}, running {torch.__version__}; run {REINSTALL}"
    try:
        return importlib.import_module("synq_fast._C"), None
    except ImportError as error:
        return None, f"the extension cannot be loaded ({error}); run {REINSTALL}"


EXTENSION, CPU_REASON = load()


def cuda_reason() -> str | None:
    """Returns why there are no compiled CUDA kernels, or None if there are."""
    if EXTENSION is None:
        return CPU_REASON
    if EXTENSION.cuda_version is None:
        return str(read_build_record().get("cuda_reason"))
    return None


CUDA_REASON = cuda_reason()
