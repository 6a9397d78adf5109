"""Argument checks shared by the ops on images, maps, logits and statistics."""

import math
from collections.abc import Sequence

import torch

FLOAT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_float_tensor(name: str, value: object) -> None:
    """Raises TypeError unless `value` is a float16, bfloat16, float32 or float64 tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in FLOAT_TYPES:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}; "
            f"convert it with {name}.float()"
        )


def check_dims(name: str, value: torch.Tensor, dims: str) -> None:
    """Raises ValueError unless `value` has as many dimensions as `dims`, such as "B, C, h, w"."""
    if value.ndim != len(dims.split(",")):
        raise ValueError(f"{name} must have shape ({dims}), got {shape_text(value)}")


def check_shape(name: str, value: torch.Tensor, shape: Sequence[int], meaning: str) -> None:
    """Raises ValueError unless `value` has exactly `shape`, described to people by `meaning`."""
    if tuple(value.shape) != tuple(shape):
        raise ValueError(
            f"{name} must have shape {meaning} = {tuple(shape)}, got {shape_text(value)}"
        )


def check_not_empty(name: str, value: torch.Tensor, reason: str) -> None:
    """Raises ValueError if `value` has no element, for the `reason` given."""
    if value.numel() == 0:
        raise ValueError(f"{name} is empty, with shape {shape_text(value)}: {reason}")


def check_same_device(name: str, value: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Raises ValueError if the two tensors are on different devices."""
    if value.device != other.device:
        raise ValueError(
            f"{name} is on {value.device} but {other_name} is on {other.device}; "
            "move both to one device"
        )


def check_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> None:
    """Raises TypeError or ValueError unless `value` is a finite number that keeps the bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    if not -math.inf < value < math.inf:  # traced with dynamic numbers, unlike isfinite
        raise ValueError(f"{name} must be finite, got {value!r}")
    if above is not None and not value > above:
        raise ValueError(f"{name} must be above {above:g}, got {value!r}")
    if least is not None and not value >= least:
        raise ValueError(f"{name} must be at least {least:g}, got {value!r}")
    if most is not None and not value <= most:
        raise ValueError(f"{name} must be at most {most:g}, got {value!r}")


def check_integer(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raises TypeError or ValueError unless `value` is an int in `[least, most]`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    if value < least or (most is not None and value > most):
        bound = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {bound}, got {value}")


def check_axis(axis: object, name: str, value: torch.Tensor) -> None:
    """Raises TypeError or IndexError unless `axis` is None or a dimension of the tensor."""
    if axis is None:
        return
    if type(axis) is not int:
        raise TypeError(f"axis must be an int or None, got {axis!r} ({type(axis).__name__})")
    if not -value.ndim <= axis < value.ndim:
        raise IndexError(
            f"axis {axis} is out of range for {name}, a tensor with {value.ndim} dimensions"
        )


def check_size(size: object) -> tuple[int, int]:
    """Returns `size` as `(height, width)`; raises TypeError or ValueError if it is not a pair."""
    if type(size) is tuple and len(size) == 2 and type(size[0]) is type(size[1]) is int:
        height, width = size
        if height > 0 and width > 0:
            return height, width
    if not isinstance(size, Sequence) or isinstance(size, str):
        raise TypeError(f"size must be a pair (height, width), got {size!r}")
    if len(size) != 2:
        raise ValueError(f"size must be a pair (height, width), got {len(size)} numbers: {size!r}")
    height, width = size
    check_integer("size[0], the height,", height, 1)
    check_integer("size[1], the width,", width, 1)
    return height, width


def shape_text(value: torch.Tensor) -> str:
    """Returns the shape of `value` as plain text."""
    return str(tuple(value.shape))
