"""The bias-corrected moving average of a tensor's range."""

import torch

from synq_fast.ops._backend import select
from synq_fast.ops._tensor_checks import (
    check_float_tensor,
    check_not_empty,
    check_number,
    check_same_device,
    shape_text,
)
from synq_fast.reference.update_range import read_range as _reference_read
from synq_fast.reference.update_range import update_range as _reference_update


def update_range(
    x: torch.Tensor,
    state_min: torch.Tensor,
    state_max: torch.Tensor,
    step: torch.Tensor,
    beta: float = 0.9,
) -> None:
    """Folds the extrema of one batch into a running range, in place.

    With `m` the minimum (or maximum) of `x`, the state becomes `beta * state + (1 - beta) * m` and
    `step` grows by one. The state starts at zero and is biased towards it: `read_range` corrects
    that when the range is read, so it is right from the first batch on. Nothing is copied to the
    host. A NaN in `x` makes the state NaN for good.

    Args:
        x: The batch, any shape with at least one element; float16, bfloat16, float32 or float64.
        state_min: Running minimum, float32, one element; zero at the start. Changed in place.
        state_max: Running maximum, like `state_min`. Changed in place.
        step: Number of updates so far, int64, one element; zero at the start. Changed in place.
        beta: Weight of the past, in [0, 1).

    Raises:
        TypeError: A tensor has another type than said above, or `beta` is not a number.
        ValueError: `x` is empty, a state has more than one element, `beta` is outside [0, 1) or
            the devices differ.
        BackendUnavailableError: The backend asked for has no kernel for this op.

    Source: the moving average with bias correction of Kingma and Ba, "Adam", ICLR 2015, section 3.
    """
    check_float_tensor("x", x)
    check_not_empty("x", x, "it has no minimum and maximum")
    _check_state(state_min, state_max, step, beta)
    check_same_device("x", x, "state_min", state_min)
    select("update_range", x.device)
    _reference_update(x.detach(), state_min, state_max, step, beta)


def read_range(
    state_min: torch.Tensor,
    state_max: torch.Tensor,
    step: torch.Tensor,
    beta: float = 0.9,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads the range from a state kept by `update_range`, without a copy to the host.

    Args:
        state_min: Running minimum, float32, one element.
        state_max: Running maximum, float32, one element.
        step: Number of updates, int64, one element.
        beta: The value given to `update_range`.

    Returns:
        `(range_min, range_max)`: the states over `1 - beta ** step`, new tensors shaped like the
        states; NaN before the first update.

    Raises:
        TypeError: A tensor has another type than said above, or `beta` is not a number.
        ValueError: A state has more than one element, `beta` is outside [0, 1) or the devices
            differ.
    """
    _check_state(state_min, state_max, step, beta)
    return _reference_read(state_min, state_max, step, beta)


def _check_state(
    state_min: torch.Tensor, state_max: torch.Tensor, step: torch.Tensor, beta: float
) -> None:
    for name, state, dtype in (
        ("state_min", state_min, torch.float32),
        ("state_max", state_max, torch.float32),
        ("step", step, torch.int64),
    ):
        if not isinstance(state, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(state).__name__}")
        if state.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {state.dtype}")
        if state.numel() != 1:
            raise ValueError(f"{name} must have one element, got shape {shape_text(state)}")
        check_same_device(name, state, "state_min", state_min)
    check_number("beta", beta, least=0)
    if beta >= 1:
        raise ValueError(f"beta must be below 1, got {beta!r}: the state would never change")
