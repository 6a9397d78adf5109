"""What every op of the library is held to, for tests of any backend and for benchmarks.

    from synq_fast.testing import CASES, check
    assert check(CASES["low_pass"], my_namespace, device="cuda") == []

`my_namespace.low_pass` takes what `synq_fast.ops.low_pass` takes.
"""

from importlib import import_module
from pkgutil import iter_modules

from synq_fast.testing import cases
from synq_fast.testing.case import EXACT, Nearest, OpCase, Sample, Tolerance
from synq_fast.testing.conformance import Check, check, run

CASES: dict[str, OpCase] = {
    name: import_module(f"{cases.__name__}.{name}").CASE
    for name in sorted(module.name for module in iter_modules(cases.__path__))
    if not name.startswith("_")
}

__all__ = [
    "CASES",
    "EXACT",
    "Check",
    "Nearest",
    "OpCase",
    "Sample",
    "Tolerance",
    "check",
    "run",
]
