"""HiRes-CAM: weights of elements."""

from typing import Any

import torch

from synq_fast.testing.cases._maps import kinds, map_case


def call(
    namespace: Any,
    activations: torch.Tensor,
    gradients: torch.Tensor,
    *,
    size: tuple[int, int],
    **options: Any,
) -> torch.Tensor:
    """Calls the op."""
    cam: torch.Tensor = namespace.hires_cam(activations, gradients, size, **options)
    return cam


CASE = map_case("hires_cam", call, lambda: kinds(clamped=False), saves=2 * 16 + 2 * 3 * 16)
