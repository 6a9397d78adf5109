"""What the class activation map ops share: checks, tokens as images, the call of the kernel."""

import torch

from synq_fast.ops import _library as _library
from synq_fast.ops._backend import select
from synq_fast.ops._definitions.grad_cam import KINDS
from synq_fast.ops._tensor_checks import (
    check_float_tensor,
    check_integer,
    check_not_empty,
    check_number,
    check_same_device,
    check_shape,
    shape_text,
)
from synq_fast.reference._cam import least_weight

_default = torch.ops.synq_fast.grad_cam.default
_triton = torch.ops.synq_fast.grad_cam.triton


def check_cam_tensors(
    activations: torch.Tensor, gradients: torch.Tensor, grid: tuple[int, int] | None
) -> None:
    """Raises TypeError or ValueError unless these are activations with their gradients."""
    check_float_tensor("activations", activations)
    check_float_tensor("gradients", gradients)
    if grid is None:
        if activations.ndim != 4:
            raise ValueError(
                "activations must have shape (B, C, h, w), or (B, N, C) with grid=(h, w), "
                f"got {shape_text(activations)}"
            )
    else:
        _check_grid(activations, grid)
    if activations.shape[0] > 0:
        check_not_empty("activations", activations, "there is nothing to map")
    check_shape("gradients", gradients, activations.shape, "of activations")
    check_same_device("gradients", gradients, "activations", activations)


def _check_grid(activations: torch.Tensor, grid: object) -> None:
    if not isinstance(grid, (tuple, list)) or len(grid) != 2:
        raise TypeError(f"grid must be a pair (height, width) or None, got {grid!r}")
    height, width = grid
    check_integer("grid[0], the height,", height, 1)
    check_integer("grid[1], the width,", width, 1)
    if activations.ndim != 3:
        raise ValueError(
            "grid is for tokens: activations must then have shape (B, N, C), "
            f"got {shape_text(activations)}"
        )
    tokens = activations.shape[1]
    if tokens != height * width:
        raise ValueError(
            f"activations have {tokens} tokens, but a grid of {height} x {width} has "
            f"{height * width}; cut class and register tokens off first, for example with "
            "activations[:, 1:] and gradients[:, 1:]"
        )


def check_clamp(clamp: float | None) -> float:
    """Returns the least weight that the kernels take; raises TypeError or ValueError if bad."""
    if clamp is not None:
        check_number("clamp", clamp, least=0)
    return least_weight(clamp)


def on_reference(name: str, *tensors: torch.Tensor) -> bool:
    """Whether the reference computes this: by choice, for want of a kernel, or for float64."""
    backend = select(name, tensors[0].device)
    return backend == "reference" or any(x.dtype == torch.float64 for x in tensors)


def as_images(x: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
    """Returns tokens as the channels_last image that they are in memory."""
    if grid is None:
        return x
    return x.view(x.shape[0], *grid, x.shape[2]).permute(0, 3, 1, 2)


def kernel_inputs(
    activations: torch.Tensor, gradients: torch.Tensor, grid: tuple[int, int] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns both as `(B, C, h, w)` of one type, the gradients as constants."""
    if gradients.requires_grad:
        gradients = gradients.detach()
    if activations.dtype != gradients.dtype:
        activations, gradients = activations.float(), gradients.float()
    return as_images(activations, grid), as_images(gradients, grid)


def compute_map(
    name: str,
    activations: torch.Tensor,
    gradients: torch.Tensor,
    score: torch.Tensor | None,
    size: tuple[int, int],
    clamp: float,
    eps: float,
    grid: tuple[int, int] | None,
) -> torch.Tensor:
    """Calls the kernel of the map ops on checked arguments.

    For Grad-CAM++, `clamp` is the distance from zero below which a denominator counts as zero.
    """
    op = _triton if select(name, activations.device) == "triton" else _default
    images = kernel_inputs(activations, gradients, grid)
    result: torch.Tensor = op(*images, score, KINDS[name], *size, clamp, eps)[0]
    return result
