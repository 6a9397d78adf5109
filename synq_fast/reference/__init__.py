"""The ops in plain PyTorch: their definition, the oracle of the tests and the fallback.

A module gives the package the function that bears its name.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from synq_fast.reference.update_range import read_range as read_range

__all__ = ["read_range"]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., Any]: ...

else:
    for _module in pkgutil.iter_modules(__path__):
        if not _module.name.startswith("_"):
            _found = importlib.import_module(f"{__name__}.{_module.name}")
            # Over the module itself, which the import has set.
            globals()[_module.name] = getattr(_found, _module.name)
            __all__.append(_module.name)
