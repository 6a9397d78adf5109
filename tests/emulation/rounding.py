"""Soft rounding on emulated CUDA kernels."""

import ctypes
from typing import Any

import torch

from tests.emulation.launching import (
    INT,
    LONG,
    POINTER,
    Launcher,
    arrange,
    differentiable,
    fields,
)
from tests.emulation.quantization import bound


class Params(ctypes.Structure):
    """SoftRoundParams of csrc/soft_round.h."""

    _fields_ = fields(
        (LONG, "outer channels inner"),
        (POINTER, "v base gradient y scale zero_point exponent grad_penalty penalty grad_scale"),
        (POINTER, "workspace"),
        (INT, "bits"),
    )


class Rounding:
    """The op by its name."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def soft_round(
        self, v: Any, base: Any, scale: Any, zero_point: Any, bits: int, exponent: Any, *, axis: Any
    ) -> Any:
        place = arrange(v, axis)
        beside = torch.empty_like(v, dtype=base.dtype).copy_(base).permute(place.order)
        values = place.sizes | {
            "v": self.launch.input(place.memory), "base": self.launch.input(beside.contiguous()),
            "scale": bound(scale.detach(), place.channels), "bits": bits,
            "zero_point": bound(zero_point.detach(), place.channels),
            "exponent": exponent.detach().reshape(1),
        }  # fmt: skip
        workspace = ("workspace", torch.float64)

        def forward(*_: Any) -> Any:
            w, penalty = self.launch.output(place.memory), torch.full((1,), float("nan"))
            if v.numel() == 0:
                return (place.restored(w), torch.zeros(())), None
            self.launch("forward", Params, **values, y=w, penalty=penalty, workspace=workspace)
            return (place.restored(w), penalty[0].clone()), None

        def backward(_: Any, grad_w: Any, grad_penalty: Any) -> Any:
            of_v, of_scale = self.launch.output(place.memory), torch.zeros(place.channels)
            if v.numel() == 0:
                return place.restored(of_v), of_scale.view(scale.shape)
            given = {}
            if grad_w is not None:
                of_scale.fill_(float("nan"))
                given["gradient"] = self.launch.input(grad_w.permute(place.order).contiguous())
            if grad_penalty is not None:
                given["grad_penalty"] = grad_penalty.reshape(1)
            self.launch(
                "backward", Params, **values, **given, y=of_v, grad_scale=of_scale,
                workspace=workspace,
            )  # fmt: skip
            return place.restored(of_v), of_scale.view(scale.shape)

        return differentiable(forward, backward, v, scale)
