"""The bias-corrected moving average of a tensor's range."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import register
from synq_fast.ops._tensor_checks import (
    check_float_tensor,
    check_not_empty,
    check_number,
    check_same_device,
    shape_text,
)
from synq_fast.reference.update_range import read_range as _plain_read
from synq_fast.reference.update_range import update_range as _plain

Tensor = torch.Tensor


def _check_state(state_min: Tensor, state_max: Tensor, step: Tensor, beta: float) -> None:
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
    if not isinstance(part, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(part).__name__}")
    if part.dtype != dtype:
        raise TypeError(
            f"{name} must be {dtype}, got {part.dtype}; it is changed in place and cannot be "
            f"converted here: make it with dtype={dtype}"
        )
    if part.numel() != 1:
        raise ValueError(f"{name} must have one element, got shape {shape_text(part)}")


def _check(
    x: Tensor,
    state_min: Tensor,
    state_max: Tensor,
    step: Tensor,
    beta: float,
) -> None:
    check_float_tensor("x", x)
    check_not_empty("x", x, "it has no minimum and maximum")
    _check_state(state_min, state_max, step, beta)
    if x.device != state_min.device:
        check_same_device("x", x, "state_min", state_min)


# The results are the changed states: for tracing there is nothing to return.
_op = register(
    "update_range",
    "(Tensor x, Tensor(a!) state_min, Tensor(b!) state_max, Tensor(c!) step, float beta) -> ()",
    fake=_check,
    reference=_plain,
)


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
    that when the range is read, so it is right from the first batch on. `x` is read once, nothing
    is copied to the host, and every backend gives the same bits: the product with the float32
    `beta`, the product with the float32 `1 - beta` and the sum are each rounded on their own. A NaN
    in `x` makes the state NaN for good.

    Args:
        x: The batch, any shape with at least one element; float16, bfloat16, float32, or float64,
            which always runs on the reference.
        state_min: Running minimum, float32, one element; zero at the start. Changed in place.
        state_max: Running maximum, like `state_min`. Changed in place.
        step: Number of updates so far, int64, one element; zero at the start. Changed in place.
        beta: Weight of the past, in [0, 1).

    Raises:
        TypeError: A tensor has another type than said above, or `beta` is not a number.
        ValueError: `x` is empty, a state has more than one element, `beta` is outside [0, 1) or
            the devices differ.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: the moving average with bias correction of Kingma and Ba, "Adam", ICLR 2015, section 3.
    """
    if has_torch_function_variadic(x, state_min, state_max, step):
        overridden(update_range, locals())
        return
    arguments = (x, state_min, state_max, step, beta)
    op = _op.on(x)
    if op is None or type(beta) is bool:
        _check(*arguments)
        _plain(x.detach(), state_min, state_max, step, beta)
        return
    try:
        op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)


def read_range(
    state_min: Tensor,
    state_max: Tensor,
    step: Tensor,
    beta: float = 0.9,
) -> tuple[Tensor, Tensor]:
    """Reads the range from a state kept by `update_range`, without a copy to the host.

    A state that began at zero is too small by the factor `1 - beta ** step` and is divided by it:

        range = state / (1 - beta ** step)

    Args:
        state_min: Running minimum, float32, one element.
        state_max: Running maximum, float32, one element.
        step: Number of updates, int64, one element.
        beta: The value given to `update_range`.

    Returns:
        `(range_min, range_max)`: new tensors shaped like the states; NaN before the first update.

    Raises:
        TypeError: A tensor has another type than said above, or `beta` is not a number.
        ValueError: A state has more than one element, `beta` is outside [0, 1) or the devices
            differ.

    Source: the bias correction of Kingma and Ba, "Adam", ICLR 2015, section 3.
    """
    if has_torch_function_variadic(state_min, state_max, step):
        overriding: tuple[Tensor, Tensor] = overridden(read_range, locals())
        return overriding
    _check_state(state_min, state_max, step, beta)
    return _plain_read(state_min, state_max, step, beta)
