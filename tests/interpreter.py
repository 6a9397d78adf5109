"""Triton's interpreter in less time: what it asks before every operation is kept in memory."""

import inspect
from collections.abc import Callable, Hashable
from types import ModuleType, SimpleNamespace
from typing import Any

BUILTINS: dict[Any, list[str]] = {}


def remember() -> None:
    """Keeps what the interpreter computes anew for every function and every value, always alike."""
    try:
        from triton.language import core
        from triton.runtime import interpreter
    except ImportError:
        return
    remember_builtins(core, interpreter)
    # A value's NumPy type is looked up in a dictionary made for it; a shape's type is a text.
    remember_results(interpreter, "_get_np_dtype", lambda given: (type(given), given.name))
    remember_results(core, "_type_for_tuple_values", lambda *given: shape_key(core, *given))


def remember_builtins(core: ModuleType, interpreter: ModuleType) -> None:
    """Before every function, nested ones too, the interpreter lists all members of triton.language
    to replace its builtins: a third of the time of small kernels. Which members those are never
    changes; in nested functions they are replaced already, all of them or none.
    """

    def members(package: ModuleType) -> list[tuple[str, Any]]:
        if package not in BUILTINS:
            found = inspect.getmembers(package)
            BUILTINS[package] = [name for name, member in found if core.is_builtin(member)]
        names = BUILTINS[package]
        if names and not core.is_builtin(getattr(package, names[0])):
            return []
        return [(name, getattr(package, name)) for name in names]

    interpreter.inspect = SimpleNamespace(**{**vars(inspect), "getmembers": members})


def remember_results(module: ModuleType, name: str, key: Callable[..., Hashable]) -> None:
    """Keeps the results of a function by what tells its arguments apart; None is computed anew."""
    function, kept = getattr(module, name, None), {}
    if function is None:
        return

    def remembered(*given: Any) -> Any:
        what = key(*given)
        if what is None:
            return function(*given)
        if what not in kept:
            kept[what] = function(*given)
        return kept[what]

    setattr(module, name, remembered)


def shape_key(core: ModuleType, values: list[Any], fields: Any = None) -> Hashable:
    """The numbers of a shape, each as it is or a constant; None of anything else."""
    key = []
    for value in values:
        number = value.value if type(value) is core.constexpr else value
        if type(number) is not int:
            return None
        key.append((type(value), number))
    return None if fields else tuple(key)
