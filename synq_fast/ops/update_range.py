"""The bias-corrected moving average of a tensor's range."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops import _library as _library
from synq_fast.ops._backend import select
from synq_fast.ops._overrides import overridden
from synq_fast.ops._range_checks import check_range_state, check_state
from synq_fast.ops._tensor_checks import check_float_tensor
from synq_fast.reference.update_range import read_range as _reference_read
from synq_fast.reference.update_range import update_range as _reference_update

_default = torch.ops.synq_fast.update_range.default
_triton = torch.ops.synq_fast.update_range.triton


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
    check_float_tensor("x", x)
    check_range_state(x, state_min, state_max, step, beta)
    backend = select("update_range", x.device)
    if backend == "reference" or x.dtype == torch.float64:
        _reference_update(x.detach(), state_min, state_max, step, beta)
    elif backend == "triton":
        _triton(x, state_min, state_max, step, beta)
    else:
        _default(x, state_min, state_max, step, beta)


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
    if has_torch_function_variadic(state_min, state_max, step):
        overriding: tuple[torch.Tensor, torch.Tensor] = overridden(read_range, locals())
        return overriding
    check_state(state_min, state_max, step, beta)
    return _reference_read(state_min, state_max, step, beta)
