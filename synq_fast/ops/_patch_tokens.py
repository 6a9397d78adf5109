"""Argument checks of the patch similarity entropy."""

import torch

from synq_fast.ops._tensor_checks import (
    check_dims,
    check_float_tensor,
    check_integer,
    check_number,
    shape_text,
)

MAXIMUM_POINTS = 256


def check_tokens(tokens: torch.Tensor) -> None:
    """Raises unless `tokens` is a floating tensor of shape (B, N, C) with N and C at least 1."""
    check_float_tensor("tokens", tokens)
    check_dims("tokens", tokens, "B, N, C")
    if tokens.shape[1] == 0 or tokens.shape[2] == 0:
        raise ValueError(
            f"tokens must have at least one token with one channel, got {shape_text(tokens)}"
        )


def check_density(points: int, bandwidth: float, eps: float) -> None:
    """Raises unless the density estimate's parameters are numbers within their bounds."""
    check_integer("points", points, 2, MAXIMUM_POINTS)
    check_number("bandwidth", bandwidth, above=0)
    check_number("eps", eps, above=0)
