"""Argument checks of the range ops, shared by the public functions and the fakes."""

import torch

from synq_fast.ops._checks import check_bits
from synq_fast.ops._tensor_checks import (
    check_integer,
    check_not_empty,
    check_number,
    check_same_device,
    shape_text,
)

# Candidate 100 would have an empty range.
MAX_CANDIDATES = 100
# Of the kernels: beyond, float32 cannot hold the powers of a tensor's small and large errors.
MAX_KERNEL_NORM = 16


def check_state(
    state_min: torch.Tensor, state_max: torch.Tensor, step: torch.Tensor, beta: float
) -> None:
    """Raises unless these are the parts of a running range and its weight of the past."""
    _check_part("state_min", state_min, torch.float32)
    _check_part("state_max", state_max, torch.float32)
    _check_part("step", step, torch.int64)
    device = state_min.device
    if state_max.device != device:
        check_same_device("state_max", state_max, "state_min", state_min)
    if step.device != device:
        check_same_device("step", step, "state_min", state_min)
    # The usual case first: it is quick, and can be traced where the number is symbolic.
    if type(beta) is float and 0 <= beta < 1:
        return
    check_number("beta", beta, least=0)
    if beta >= 1:
        raise ValueError(f"beta must be below 1, got {beta!r}: the state would never change")


def _check_part(name: str, part: object, dtype: torch.dtype) -> None:
    if not isinstance(part, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(part).__name__}")
    if part.dtype != dtype:
        raise TypeError(
            f"{name} must be {dtype}, got {part.dtype}; it is changed in place and cannot be "
            f"converted here: make it with dtype={dtype}"
        )
    if part.numel() != 1:
        raise ValueError(f"{name} must have one element, got shape {shape_text(part)}")


def check_range_state(
    x: torch.Tensor,
    state_min: torch.Tensor,
    state_max: torch.Tensor,
    step: torch.Tensor,
    beta: float,
) -> None:
    """Raises unless the values of `x` can be folded into the running range."""
    check_not_empty("x", x, "it has no minimum and maximum")
    check_state(state_min, state_max, step, beta)
    if x.device != state_min.device:
        check_same_device("x", x, "state_min", state_min)


def check_search(x: torch.Tensor, bits: int, candidates: int, norm: float) -> None:
    """Raises unless `x` is not empty and the search is one that exists."""
    check_not_empty("x", x, "it has no range")
    check_bits(bits)
    check_integer("candidates", candidates, 1, MAX_CANDIDATES)
    check_number("norm", norm, above=0)
