"""Forward-mode differentiation: what is constant in reverse mode is constant there too."""

from typing import Any

import torch
from torch.autograd import forward_ad


def in_forward_mode() -> bool:
    """Returns whether tensors may carry tangents, as inside `torch.func.jvp`."""
    return forward_ad._current_level >= 0


class _Constant(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(gradients[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(tangents[0])


def constant(x: torch.Tensor) -> torch.Tensor:
    """Returns `x` without its gradient and its tangent, of which `detach` leaves the second."""
    if not in_forward_mode():
        return x.detach()
    y: torch.Tensor = _Constant.apply(x)
    return y


def constant_extrema(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns minimum and maximum of `x` as constants; `aminmax` has no forward-mode derivative."""
    x = constant(x)
    if in_forward_mode():
        return x.amin(), x.amax()
    low, high = torch.aminmax(x)
    return low, high
