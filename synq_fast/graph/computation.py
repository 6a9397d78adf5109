"""What a traced network computes apart from its weights, in a form that files can hold."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Any

import torch
from torch import fx, nn

# Attributes that evaluation mode does not read.
_IDLE = {"training", "inplace", "momentum", "num_batches_tracked"}
# Where something lies is no part of what it computes.
_PLACE = re.compile(r"device\(type='\w+'(?:, index=\d+)?\)| at 0x[0-9a-f]+")

Computation = list[list[Any]]
"""One entry per node, ``[call, attributes]``; attributes by dotted name of the called module."""


def computation(graph: fx.GraphModule) -> Computation:
    """Every call of a traced network with its arguments and the called module's settings.

    A setting is a number, text or function, or a tuple of them, that a module keeps as a public
    attribute: strides, paddings, epsilons, bit widths, modes. JSON keeps all of it.
    """
    return [[_call(node), _settings(graph, node)] for node in graph.graph.nodes]


def difference(saved: Computation, here: Computation) -> str | None:
    """The first node in which two computations part, in words; None where they agree.

    A setting that only one of them knows (another version of PyTorch may have more) is passed
    over.
    """
    for old, new in zip_longest(saved, here):
        if old is None or new is None:
            return f"{_shown(old or new)} is only in the {'model' if old is None else 'file'}"
        if old[0] != new[0]:
            return f"the file has {_shown(old)}, the model {_shown(new)}"
        for name, value in old[1].items():
            found = new[1].get(name, value)
            if found != value:
                return f"{_shown(old)}: {name} is {value} in the file and {found} in the model"
    return None


def _shown(entry: list[Any]) -> str:
    text = str(entry[0])
    return text if len(text) <= 120 else f"{text[:117]}..."


def _call(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else _function(node.target)
    options = "".join(f", {name}={value}" for name, value in node.kwargs.items())
    text = f"{node.name} = {node.op} {target}({', '.join(map(str, node.args))}{options})"
    return _PLACE.sub("", text)


def _settings(graph: fx.GraphModule, node: fx.Node) -> dict[str, Any]:
    if node.op != "call_module":
        return {}
    found: dict[str, Any] = {}
    for name, module in graph.get_submodule(str(node.target)).named_modules():
        prefix = f"{name}." if name else ""
        found[f"{prefix}class"] = type(module).__name__
        if isinstance(module, nn.modules.dropout._DropoutNd):
            continue
        for key, value in vars(module).items():
            if not key.startswith("_") and key not in _IDLE:
                plain = _plain(value)
                if plain is not None:
                    found[prefix + key] = plain
    return found


def _plain(value: Any) -> Any:
    """A setting as JSON gives it back; None for what is no setting."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        items = [_plain(item) for item in value]
        return None if None in items else items
    if isinstance(value, torch.dtype):
        return str(value)
    is_function = callable(value) and not isinstance(value, nn.Module)
    return _PLACE.sub("", _function(value)) if is_function else None


def _function(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    return str(value) if name is None else f"{getattr(value, '__module__', None)}.{name}"
