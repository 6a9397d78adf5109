"""The mean squared difference between a Grad-CAM map and a given one."""

from typing import Any

import torch

from synq_fast.testing.case import Nearest, Tolerance
from synq_fast.testing.cases._maps import kinds, map_case


def call(
    namespace: Any,
    activations: torch.Tensor,
    gradients: torch.Tensor,
    target: torch.Tensor,
    **options: Any,
) -> torch.Tensor:
    """Calls the op."""
    loss: torch.Tensor = namespace.cam_alignment_loss(activations, gradients, target, **options)
    return loss


def nearest(activations: torch.Tensor, _: torch.Tensor, target: torch.Tensor) -> Any:
    """ATen's interpolation and loss of one channel."""
    functional, size = torch.nn.functional, tuple(target.shape[2:])

    def loss() -> torch.Tensor:
        resized = functional.interpolate(activations[:, :1], size, mode="bilinear")
        return functional.mse_loss(resized, target)

    return loss


CASE = map_case(
    "cam_alignment_loss",
    call,
    lambda: kinds(target=True),
    values=(Tolerance(atol=1e-6, rtol=1e-5),),
    variants=({"clamp": None},),
    nearest=Nearest("upsample_bilinear2d + mse_loss", nearest),
)
