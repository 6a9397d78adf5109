"""The total variation on emulated CUDA kernels."""

import ctypes
from typing import Any

import torch

from tests.emulation.launching import (
    DTYPES,
    INT,
    LONG,
    POINTER,
    Launcher,
    dense,
    differentiable,
    fields,
)


class Params(ctypes.Structure):
    """TotalVariationParams of csrc/total_variation.h."""

    _fields_ = fields(
        (LONG, "planes height width step"),
        (POINTER, "x norms value workspace gradient factors y"),
        (LONG, "groups"),
        (INT, "dtype"),
    )


class Variation:
    """The op by its name."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def total_variation(self, x: Any, reduction: str = "batch") -> Any:
        groups = 1 if reduction == "batch" else len(x)
        dtype, channels = x.dtype, x.shape[1]
        given = dense(x.detach())
        last = not given.is_contiguous()
        if last and not given.is_contiguous(memory_format=torch.channels_last):
            given, last = given.contiguous(), False
        order = (0, 2, 3, 1) if last else (0, 1, 2, 3)
        numbers = {
            "planes": len(x) * (1 if last else channels), "height": x.shape[2],
            "width": x.shape[3], "step": channels if last else 1, "groups": groups,
            "dtype": DTYPES.index(dtype),
        }  # fmt: skip

        def forward(x: torch.Tensor) -> Any:
            norms, value = (
                torch.full((groups, 4), float("nan")),
                torch.full((groups,), float("nan")),
            )
            if x.numel() == 0:
                value = torch.zeros(groups)
                return (value[0] if reduction == "batch" else value), None
            memory = self.launch.input(given.permute(order).contiguous())
            self.launch(
                "forward", Params, x=memory, norms=norms, value=value,
                workspace=("workspace", torch.float64), **numbers,
            )  # fmt: skip
            return (value[0].clone() if reduction == "batch" else value), (memory, norms)

        def backward(kept: Any, gradient: torch.Tensor) -> Any:
            if kept is None:
                return (torch.zeros_like(x.detach()),)
            memory, norms = kept
            y = self.launch.output(memory)
            self.launch(
                "backward", Params, x=memory, norms=norms, y=y,
                gradient=gradient.float().reshape(-1).contiguous(), **numbers,
            )  # fmt: skip
            inverse = sorted(range(4), key=order.__getitem__)
            return (torch.empty_like(x.detach()).copy_(y.permute(inverse)),)

        return differentiable(forward, backward, x)
