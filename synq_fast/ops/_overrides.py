"""Calls with arguments that handle them, as torch's own functions hand them over.

Any type with `__torch_function__` may stand for a tensor: the proxies of `torch.fx`, so that a
traced module records one node for the call, or a user's subclass of `torch.Tensor`.
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch.overrides import handle_torch_function


def overridden(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Returns what the arguments make of the call; `arguments` are the function's `locals()`."""
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    relevant: list[Any] = []
    for name, parameter in inspect.signature(function).parameters.items():
        value = arguments[name]
        relevant += value if isinstance(value, (tuple, list)) else (value,)
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            if value is not parameter.default:
                keywords[name] = value
        else:
            positional.append(value)
    return handle_torch_function(function, relevant, *positional, **keywords)
