"""Triton's interpreter in less time: what it asks before every call is kept in memory."""

import inspect
from types import ModuleType, SimpleNamespace
from typing import Any

BUILTINS: dict[Any, list[str]] = {}


def remember_builtins() -> None:
    """Before every function, nested ones too, the interpreter lists all members of triton.language
    to replace its builtins: a third of the time of small kernels. Which members those are never
    changes; whether they are replaced already is still looked up.
    """
    try:
        from triton.language import core
        from triton.runtime import interpreter
    except ImportError:
        return

    def members(package: ModuleType) -> list[tuple[str, Any]]:
        if package not in BUILTINS:
            found = inspect.getmembers(package)
            BUILTINS[package] = [name for name, member in found if core.is_builtin(member)]
        return [(name, getattr(package, name)) for name in BUILTINS[package]]

    interpreter.inspect = SimpleNamespace(**{**vars(inspect), "getmembers": members})
