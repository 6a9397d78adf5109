"""The norms of the differences of neighbouring pixels."""

import torch

from synq_fast.reference._precision import to_compute


def total_variation(x: torch.Tensor, reduction: str = "batch") -> torch.Tensor:
    """Sum of four norms; see `synq_fast.ops.total_variation`."""
    value = to_compute(x)
    dims = (0, 1, 2, 3) if reduction == "batch" else (1, 2, 3)
    return torch.stack(
        [torch.linalg.vector_norm(d, dim=dims) for d in neighbour_differences(value)]
    ).sum(0)


def neighbour_differences(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Returns the differences to the right, down, and along both diagonals."""
    upper, lower = x[:, :, :-1], x[:, :, 1:]
    return (
        x[..., 1:] - x[..., :-1],
        lower - upper,
        lower[..., 1:] - upper[..., :-1],
        lower[..., :-1] - upper[..., 1:],
    )
