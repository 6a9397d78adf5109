"""Grad-CAM: weights of channels."""

from typing import Any

import torch

from synq_fast.testing.case import Nearest
from synq_fast.testing.cases._maps import kinds, map_case, upsampled


def call(
    namespace: Any,
    activations: torch.Tensor,
    gradients: torch.Tensor,
    *,
    size: tuple[int, int],
    **options: Any,
) -> torch.Tensor:
    """Calls the op."""
    cam: torch.Tensor = namespace.grad_cam(activations, gradients, size, **options)
    return cam


CASE = map_case(
    "grad_cam",
    call,
    lambda: kinds(clamped=True),
    variants=({"clamp": None},),
    nearest=Nearest("upsample_bilinear2d", upsampled, lambda n, *x: n.grad_cam(*x, (32, 32))),
)
