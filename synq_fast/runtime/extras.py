"""Packages that only some of the work needs."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

from synq_fast.errors import MissingExtraError


@dataclass(frozen=True)
class Extra:
    """What ``pip install "synq-fast[NAME]"`` brings."""

    modules: tuple[str, ...]
    """As they are imported."""
    gives: str
    """What it is for, in the words of commands and arguments."""


EXTRAS = {
    "auto": Extra(("scipy",), 'widths that are found: bits="auto:4.0"'),
    "timm": Extra(("timm",), "timm's models: --model timm/NAME"),
    "export": Extra(
        ("onnx", "onnxscript", "onnx_ir", "onnxruntime"), "ONNX files and their checks: export"
    ),
    "openvino": Extra(("openvino",), "checks of files for OpenVINO: export --target openvino"),
    "report": Extra(("matplotlib", "jinja2"), "pages and plots: report, bench --plot"),
    "tensorboard": Extra(("tensorboard",), "the live view: --tensorboard"),
    "bench": Extra(("pytest", "pytest_benchmark"), "measurements of ops and steps: bench"),
}
"""In pyproject.toml each has its packages; those of developers are named there alone."""


def missing_modules(extra: str) -> list[str]:
    """The modules of an extra that are not installed; imports none."""
    return [name for name in EXTRAS[extra].modules if importlib.util.find_spec(name) is None]


def needs(extra: str, what: str) -> None:
    """Make sure that what an extra installs is there.

    Args:
        extra: one of ``EXTRAS``.
        what: the work that needs it, as the subject of a sentence.

    Raises:
        MissingExtraError: a module cannot be imported; says how to get it.
    """
    for name in EXTRAS[extra].modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingExtraError(
                f'{what} needs {name}: pip install "synq-fast[{extra}]" ({error})'
            ) from error
