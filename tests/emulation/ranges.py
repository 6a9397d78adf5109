"""The range ops on emulated CUDA kernels."""

import ctypes
from typing import Any

import torch

from synq_fast import reference
from tests.emulation.launching import (
    DTYPES,
    FLOAT,
    INT,
    LONG,
    POINTER,
    Launcher,
    arrange,
    dense,
    fields,
)


class UpdateParams(ctypes.Structure):
    """UpdateRangeParams of csrc/update_range.h."""

    _fields_ = fields(
        (POINTER, "x state_min state_max step workspace"),
        (LONG, "elements"),
        (FLOAT, "beta gain"),
        (INT, "dtype"),
    )


class SearchParams(ctypes.Structure):
    """SearchRangeParams of csrc/search_range.h."""

    _fields_ = fields(
        (LONG, "outer channels inner"),
        (POINTER, "x range_min range_max workspace"),
        (INT, "candidates bits"),
        (FLOAT, "norm"),
        (INT, "dtype"),
    )


class Ranges:
    """The ops by their names."""

    read_range = staticmethod(reference.read_range)

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def _input(self, x: torch.Tensor) -> dict[str, Any]:
        x = dense(x.detach())
        order = sorted(range(x.ndim), key=lambda dim: -x.stride(dim))
        memory = self.launch.input(x.permute(order))
        return {"x": memory, "elements": x.numel(), "dtype": DTYPES.index(x.dtype)}

    def update_range(self, x: Any, low: Any, high: Any, step: Any, beta: float = 0.9) -> None:
        self.launch(
            "update", UpdateParams, **self._input(x), state_min=low, state_max=high, step=step,
            beta=beta, gain=1 - beta, workspace=("update_workspace", torch.float32),
        )  # fmt: skip

    def search_range(
        self, x: Any, bits: int, *, candidates: int = 80, norm: float = 2.4, axis: Any = None
    ) -> Any:
        place = arrange(x, axis)
        found = torch.full((2, place.channels), float("nan"))
        self.launch(
            "search", SearchParams, **place.sizes, x=self.launch.input(place.memory),
            range_min=found[0], range_max=found[1], candidates=candidates, bits=bits, norm=norm,
            dtype=DTYPES.index(x.dtype), workspace=("search_workspace", torch.float64),
        )  # fmt: skip
        shape = () if axis is None else (place.channels,)
        return found[0].reshape(shape), found[1].reshape(shape)
