"""The state dict inside a checkpoint, under the names that a model expects."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from synq_fast.errors import CheckpointError, SynqFastWarning

# Trainers write the weights under one of these; the averaged ones beside them or alone.
_TRAINED = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
_AVERAGED = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "ema_model",
    "ema",
    "params_ema",
)
# What wrappers put before the names: of these a file may hold other things beside the model.
_PREFIX_WORDS = {*_TRAINED, *_AVERAGED, "backbone", "encoder", "student", "teacher"}
_TRANSPARENT = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod)\.")
_COUNTER = "n_averaged"
_SHOWN = 5


def found_state(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name of what a file holds.

    Raises:
        CheckpointError: it holds something else than tensors.
    """
    content = _unwrapped(content, path)
    if not isinstance(content, Mapping) or not content:
        got = "an empty dictionary" if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path} holds {got}, expected a dictionary of tensors (a state dict)"
        )
    wrong = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if wrong:
        raise CheckpointError(
            f"{path} is not a state dict: the values of {', '.join(wrong[:_SHOWN])} are not "
            'tensors; save model.state_dict(), alone or as {"state_dict": ...}'
        )
    return {str(k): v for k, v in content.items()}


def named_as(
    expected: Mapping[str, Tensor], state: dict[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """The tensors of a file under the names of a model, as far as prefixes keep them apart.

    ``module.`` and ``_orig_mod.`` are taken out wherever they stand. One prefix under which the
    file holds the whole model is removed; what lies beside it is left out, and said.

    Raises:
        CheckpointError: the file holds the model under several prefixes.
    """
    if _COUNTER not in expected:
        state = {k: v for k, v in state.items() if k.split(".")[-1] != _COUNTER}
    if not expected or expected.keys() <= state.keys():
        return state
    names = {_transparent(name): name for name in expected}
    plain = {_transparent(name): value for name, value in state.items()}
    if len(names) < len(expected) or len(plain) < len(state):
        return state
    needed = [name for name in names if not name.endswith("num_batches_tracked")]
    prefix = _chosen_prefix(needed, plain, path)
    if prefix is None:
        prefix = _common_prefix(plain)
    beside = [name for name in plain if not name.startswith(prefix)]
    if beside:
        _say(
            f'{path}: the model is read from the tensors named "{prefix}..."; {len(beside)} '
            f"others are left out ({', '.join(beside[:_SHOWN])})"
        )
    found = {
        name.removeprefix(prefix): value for name, value in plain.items() if name.startswith(prefix)
    }
    return {names.get(name, name): value for name, value in found.items()}


def _unwrapped(content: Any, path: Path) -> Any:
    while isinstance(content, Mapping):
        inside = [k for k in (*_TRAINED, *_AVERAGED) if _holds_tensors(content.get(k))]
        if not inside:
            break
        if len(inside) > 1:
            _say(
                f"{path} holds {', '.join(inside)}: {inside[0]} is read; for another save that "
                f'part alone: torch.save(torch.load(PATH)["{inside[1]}"], OTHER)'
            )
        content = content[inside[0]]
    return content


def _holds_tensors(content: Any) -> bool:
    return isinstance(content, Mapping) and (
        not content or any(isinstance(v, Tensor) or _holds_tensors(v) for v in content.values())
    )


def _chosen_prefix(needed: list[str], state: Mapping[str, Tensor], path: Path) -> str | None:
    """The prefix under which a file holds a whole model; None: there is no such one."""
    if not needed:
        return None
    anchor = max(needed, key=len)
    ends = [k.removesuffix(anchor) for k in state if k == anchor or k.endswith(f".{anchor}")]
    whole = [p for p in ends if all(p + name in state for name in needed)]
    # An unknown word in front could also be a part of a larger network.
    whole = [
        p
        for p in whole
        if set(p.split(".")[:-1]) <= _PREFIX_WORDS or all(k.startswith(p) for k in state)
    ]
    if "" in whole or len(whole) < 2:
        return "" if "" in whole else next(iter(whole), None)
    trained = [p for p in whole if "ema" not in re.split(r"[._]", p)]
    if len(trained) != 1:
        raise CheckpointError(
            f"{path} holds the tensors of this model under several prefixes "
            f"({', '.join(whole)}); save the wanted ones alone"
        )
    return trained[0]


def _common_prefix(state: Mapping[str, Tensor]) -> str:
    """The wrappers' words before all names, so that an error shows the names behind them."""
    prefix = ""
    while True:
        words = {name.removeprefix(prefix).partition(".")[0] for name in state}
        if len(words) != 1 or not words <= _PREFIX_WORDS:
            return prefix
        prefix += f"{words.pop()}."


def _transparent(name: str) -> str:
    return _TRANSPARENT.sub("", name)


def _say(text: str) -> None:
    warnings.warn(text, SynqFastWarning, stacklevel=5)
