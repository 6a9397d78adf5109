"""Which submodules stay whole and in floating point because the user named them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator

from torch import nn

from synq_fast.errors import RecipeError

_KEY = "quantization.leaf_modules"
_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def leaf_names(module: nn.Module, leaves: Iterable[str]) -> frozenset[str]:
    """The qualified names of the submodules that ``leaves`` names, as tracing knows them.

    A module that is reachable under several names counts under its first; a list or a dictionary
    of modules, which is never called itself, counts with its entries.

    Args:
        module: the model as the user built it.
        leaves: qualified names or class names of submodules.

    Raises:
        RecipeError: a name that no submodule has; the message holds those that are near.
    """
    first = {child: name for name, child in module.named_modules() if name}
    named = {n: c for n, c in module.named_modules(remove_duplicate=False) if n}
    classes: dict[str, list[nn.Module]] = {}
    for child in first:
        classes.setdefault(type(child).__name__, []).append(child)
    found: set[str] = set()
    for leaf in leaves:
        meant = [*classes.get(leaf, ()), *([named[leaf]] if leaf in named else ())]
        if not meant:
            raise RecipeError(_unknown(leaf, module, [*named, *classes]))
        found.update(first[child] for start in meant for child in _called(start) if child in first)
    return frozenset(found)


def is_kept(target: str, leaves: Collection[str]) -> bool:
    """Whether a submodule is one of the leaves, or lies inside one."""
    parts = target.split(".")
    return any(".".join(parts[: end + 1]) in leaves for end in range(len(parts)))


def _called(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    if isinstance(module, _CONTAINERS):
        for child in module.children():
            yield from _called(child)


def _unknown(leaf: str, module: nn.Module, known: list[str]) -> str:
    if leaf == type(module).__name__:
        return (
            f'{_KEY} names "{leaf}", the model itself: nothing would be quantized; name parts of it'
        )
    lower = {name.lower(): name for name in known}
    near = [lower[name] for name in difflib.get_close_matches(leaf.lower(), lower, 3, 0.5)]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    top = ", ".join(name for name, _ in module.named_children())
    return (
        f'{_KEY} names "{leaf}", and no submodule of {type(module).__name__} has this qualified '
        f"name or class{hint} (its parts: {top})"
    )
