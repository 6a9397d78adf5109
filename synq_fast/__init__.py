"""Accurate low-bit vision models without any data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from synq_fast.version import __version__ as __version__

if TYPE_CHECKING:
    from synq_fast import ops, reference
    from synq_fast.deployment.report import ExportReport
    from synq_fast.engine import quantize, synthesize
    from synq_fast.engine.comparison import Comparison, compare
    from synq_fast.engine.evaluation import EvaluationResult, evaluate
    from synq_fast.engine.exporting import export
    from synq_fast.engine.report import report
    from synq_fast.engine.result import QuantizationResult
    from synq_fast.engine.saved_model import coverage, load
    from synq_fast.engine.sensitivity import sensitivity
    from synq_fast.errors import SynqFastError
    from synq_fast.models import Teacher, load_teacher
    from synq_fast.quant.sensitivity import Sensitivity
    from synq_fast.recipes import list_recipes, load_recipe
    from synq_fast.studies.result import StudyResult
    from synq_fast.studies.running import study

# Nothing is imported before it is used: torch takes seconds, which `synq-fast --help` need not wait
# for, and the engine brings torchvision and more, which the ops do without.
_LAZY = {
    "Comparison": "engine.comparison",
    "EvaluationResult": "engine.evaluation",
    "ExportReport": "deployment.report",
    "QuantizationResult": "engine.result",
    "Sensitivity": "quant.sensitivity",
    "StudyResult": "studies.result",
    "SynqFastError": "errors",
    "Teacher": "models",
    "compare": "engine.comparison",
    "coverage": "engine.saved_model",
    "evaluate": "engine.evaluation",
    "export": "engine.exporting",
    "list_recipes": "recipes",
    "load": "engine.saved_model",
    "load_recipe": "recipes",
    "load_teacher": "models",
    "quantize": "engine",
    "report": "engine.report",
    "sensitivity": "engine.sensitivity",
    "study": "studies.running",
    "synthesize": "engine",
}
_SUBMODULES = frozenset({"ops", "reference"})

__all__ = [
    "Comparison",
    "EvaluationResult",
    "ExportReport",
    "QuantizationResult",
    "Sensitivity",
    "StudyResult",
    "SynqFastError",
    "Teacher",
    "compare",
    "coverage",
    "evaluate",
    "export",
    "list_recipes",
    "load",
    "load_recipe",
    "load_teacher",
    "ops",
    "quantize",
    "reference",
    "report",
    "sensitivity",
    "study",
    "synthesize",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"synq_fast.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'synq_fast' has no attribute {name!r}")
    return getattr(importlib.import_module(f"synq_fast.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
