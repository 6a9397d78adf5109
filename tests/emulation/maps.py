"""The class activation maps on emulated CUDA kernels."""

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
    differentiable,
    fields,
)

# As CamKind of csrc/cam.h numbers them.
KINDS = ("grad_cam", "grad_cam_plus_plus", "layer_cam", "hires_cam")
SIZES = "height width map_height map_width"


class CoarseParams(ctypes.Structure):
    """CoarseParams of csrc/grad_cam.h."""

    _fields_ = fields(
        (POINTER, "activations gradients score weights coarse stretches workspace"),
        (LONG, f"activation_stride gradient_stride images channels {SIZES}"),
        (INT, "channels_last kind"),
        (FLOAT, "clamp eps"),
        (INT, "dtype"),
    )


class MapParams(ctypes.Structure):
    """MapParams of csrc/grad_cam.h."""

    _fields_ = fields(
        (POINTER, "coarse stretches map other workspace slope loss"),
        (LONG, f"images {SIZES}"),
        (FLOAT, "eps"),
        (INT, "dtype"),
    )


class SpreadParams(ctypes.Structure):
    """SpreadParams of csrc/grad_cam.h."""

    _fields_ = fields(
        (POINTER, "weights slope factor result"),
        (LONG, "images channels positions"),
        (INT, "channels_last kind"),
        (FLOAT, "clamp"),
        (INT, "dtype"),
    )


class Maps:
    """The ops by their names."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def grad_cam(self, a: Any, g: Any, size: Any, *, clamp=1e-10, eps=1e-10, grid=None) -> Any:
        return self._map("grad_cam", a, g, None, size, clamp, eps, grid)

    def grad_cam_plus_plus(
        self, a: Any, g: Any, score: Any, size: Any, *, eps=1e-7, grid=None
    ) -> Any:
        return self._map("grad_cam_plus_plus", a, g, score, size, eps, 0.0, grid)

    def layer_cam(self, a: Any, g: Any, size: Any, *, clamp=1e-10, eps=1e-10, grid=None) -> Any:
        return self._map("layer_cam", a, g, None, size, clamp, eps, grid)

    def hires_cam(self, a: Any, g: Any, size: Any, *, eps=1e-10, grid=None) -> Any:
        return self._map("hires_cam", a, g, None, size, None, eps, grid)

    def cam_alignment_loss(
        self, a: Any, g: Any, target: Any, *, clamp=1e-10, eps=1e-10, grid=None
    ) -> Any:
        size = tuple(target.shape[2:])
        return self._map("cam_alignment_loss", a, g, None, size, clamp, eps, grid, target)

    def _map(
        self, kind: str, a: Any, g: Any, score: Any, size: Any, clamp: Any, eps: float, grid: Any,
        target: Any = None,
    ) -> Any:  # fmt: skip
        if a.shape[0] == 0:
            third = () if score is None else (score,)
            rest = (size,) if target is None else (target,)
            return getattr(reference, kind)(a, g, *third, *rest, eps=eps, grid=grid)
        last = grid is not None or (a.stride(1) == 1 and a.shape[1] > 1)
        number = KINDS.index(kind) if kind in KINDS else 0
        clamp = float("-inf") if clamp is None else clamp
        dtype = DTYPES.index(a.dtype)
        images = a.detach() if grid is None else a.detach().unflatten(1, grid).movedim(-1, 1)
        others = g.detach() if grid is None else g.detach().unflatten(1, grid).movedim(-1, 1)
        memory, constant = (
            self.launch.input(x.permute(0, 2, 3, 1) if last else x) for x in (images, others)
        )
        count, channels, height, width = images.shape
        sizes = dict(zip(SIZES.split(), (height, width, *size), strict=True)) | {"images": count}
        weights = torch.full((count, channels), float("nan"))
        coarse = torch.full((count, height, width), float("nan"))
        stretches = torch.zeros(count * self.launch.library.stretch_size(), dtype=torch.uint8)
        shared = {"coarse": coarse, "stretches": stretches, "eps": eps, **sizes}
        workspace = {"workspace": ("workspace", torch.float32)}

        def coarse_map() -> None:
            self.launch(
                "coarse", CoarseParams, activations=memory, gradients=constant,
                score=None if score is None else score.detach().float(), weights=weights,
                activation_stride=memory[0].numel(), gradient_stride=memory[0].numel(),
                channels=channels, channels_last=last, kind=number, clamp=clamp, dtype=dtype,
                workspace=("coarse_workspace", torch.float32), **shared,
            )  # fmt: skip

        def spread(slope: torch.Tensor, factor: Any) -> torch.Tensor:
            result = self.launch.output(memory)
            by_element = kind in ("layer_cam", "hires_cam")
            self.launch(
                "spread", SpreadParams, weights=constant if by_element else weights, slope=slope,
                factor=factor, result=result, images=count, channels=channels,
                positions=height * width, channels_last=last, kind=number, clamp=clamp,
                dtype=dtype,
            )  # fmt: skip
            if grid is not None:
                return torch.empty_like(a.detach()).copy_(result.flatten(1, 2))
            return result.permute(0, 3, 1, 2) if last else result

        def forward(_: torch.Tensor) -> Any:
            coarse_map()
            if target is None:
                cam = torch.full((count, 1, *size), float("nan"))
                self.launch("map", MapParams, map=cam, **shared)
                return cam, None
            loss, slope = torch.full((), float("nan")), torch.full_like(coarse, float("nan"))
            self.launch(
                "loss", MapParams, other=target.detach().contiguous(), loss=loss, slope=slope,
                dtype=DTYPES.index(target.dtype), **shared, **workspace,
            )  # fmt: skip
            return loss, slope

        def backward(slope: Any, g: torch.Tensor) -> Any:
            if target is not None:
                return (spread(slope, g.clone()),)
            stretches.zero_()
            self.launch("stretch", MapParams, **shared)
            slope = torch.full_like(coarse, float("nan"))
            self.launch(
                "map_backward", MapParams, other=g.contiguous(), slope=slope, **shared, **workspace
            )
            return (spread(slope, None),)

        return differentiable(forward, backward, a)
