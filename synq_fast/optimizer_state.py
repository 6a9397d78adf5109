"""An optimizer's state as named tensors, the form in which checkpoints keep it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.optim import Optimizer

_PREFIX = "optimizer."


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The state, ``optimizer.INDEX.KEY``; rates and other options are left to the caller."""
    return {
        f"{_PREFIX}{index}.{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave; other tensors are passed over."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(_PREFIX):
            index, key = name.removeprefix(_PREFIX).split(".", 1)
            # A copy: the tensors of a file are maps of it.
            state.setdefault(int(index), {})[key] = value.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
