"""Argument checks of the quantization ops; the messages say what was given and what to give."""

import math

import torch
from torch import Tensor

from synq_fast.reference._affine import range_shape

FLOAT = torch.float32
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALF_TYPES = (torch.float16, torch.bfloat16)


def check_bits(bits: object, least: int = 2, most: int = 16) -> None:
    """Raises TypeError or ValueError unless `bits` is an int within the bounds."""
    if type(bits) is not int:
        raise TypeError(
            f"bits must be an int from {least} to {most}, got {bits!r} ({type(bits).__name__})"
        )
    if not least <= bits <= most:
        raise ValueError(f"bits must be from {least} to {most}, got {bits}")


def is_clipped(ste: object) -> bool:
    """Returns whether the straight-through gradient is clipped; raises unless `ste` is a name."""
    if ste == "identity":
        return False
    if ste == "clip":
        return True
    raise ValueError(f'ste must be "identity" or "clip", got {ste!r}')


def is_log2(name: str, grid: object) -> bool:
    """Returns whether levels of probabilities are powers of two; raises unless that is a name."""
    if grid == "uniform":
        return False
    if grid == "log2":
        return True
    raise ValueError(f'{name} must be "uniform" or "log2", got {grid!r}')


def is_minifloat(grid: object) -> bool:
    """Returns whether levels are small floats; raises unless that is a name."""
    if grid == "uniform":
        return False
    if grid == "minifloat":
        return True
    raise ValueError(f'grid must be "uniform" or "minifloat", got {grid!r}')


def check_upper(upper: object) -> None:
    """Raises unless `upper` is None or a positive, finite number."""
    if upper is None:
        return
    if isinstance(upper, bool) or not isinstance(upper, (int, float)):
        raise TypeError(f"upper must be a number or None, got {upper!r} ({type(upper).__name__})")
    if not 0 < upper < math.inf:
        raise ValueError(f"upper must be positive and finite, got {upper}; None means no bound")


def check_flag(name: str, value: object) -> None:
    """Raises TypeError unless `value` is a bool."""
    if type(value) is not bool:
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")


def check_groups(groups: object, x: torch.Tensor, axis: int | None) -> None:
    """Raises unless `groups` is None or divides the channels of `axis`."""
    if groups is None:
        return
    if type(groups) is not int:
        raise TypeError(f"groups must be an int or None, got {groups!r} ({type(groups).__name__})")
    if axis is None:
        raise ValueError(f"groups={groups} needs axis, the dimension whose channels are grouped")
    channels = x.shape[axis]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"groups must be positive and divide the {channels} channels of axis {axis}, "
            f"got {groups}"
        )


def check_input(x: object, axis: object, groups: object = None) -> None:
    """Raises unless `x` is a float tensor of a supported type and `axis` one of its dimensions."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"x must be float32, float16 or bfloat16, got {x.dtype}; convert it with x.float()"
        )
    if axis is not None:
        if type(axis) is not int:
            raise TypeError(f"axis must be an int or None, got {axis!r} ({type(axis).__name__})")
        if not -x.ndim <= axis < x.ndim:
            raise IndexError(f"axis {axis} is out of range for a tensor with {x.ndim} dimensions")
    if groups is not None:
        check_groups(groups, x, axis)


def to_ranges(
    x: torch.Tensor,
    range_min: object,
    range_max: object,
    axis: int | None,
    groups: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns both bounds as tensors; checks what the registered op cannot see any more."""
    if (
        axis is None
        and isinstance(range_min, Tensor)
        and isinstance(range_max, Tensor)
        and range_min.dtype == FLOAT == range_max.dtype
    ):
        return range_min, range_max
    if (
        isinstance(range_min, (int, float))
        and isinstance(range_max, (int, float))
        and range_min > range_max
    ):
        raise ValueError(f"range_min must not exceed range_max, got {range_min} > {range_max}")
    return (
        to_range("range_min", range_min, x, axis, groups),
        to_range("range_max", range_max, x, axis, groups),
    )


def to_range(
    name: str, value: object, x: torch.Tensor, axis: int | None, groups: int | None = None
) -> torch.Tensor:
    """Returns one bound, or another value per channel, as a tensor on x's device."""
    if isinstance(value, torch.Tensor):
        # A bool would do as an axis where ops are called.
        if axis is not None:
            check_input(x, axis, groups)
        return widened(value)
    check_input(x, axis, groups)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"{name} must be a number or a float32 tensor, or one in a half type, got {value!r} "
            f"({type(value).__name__})"
        )
    # Filled on the device: a copy from the host would synchronise it.
    shape = range_shape(x, axis, groups)
    return torch.full(shape, value, dtype=torch.float32, device=x.device)


def widened(value: torch.Tensor) -> torch.Tensor:
    """Returns a float16 or bfloat16 tensor in float32, which holds its values exactly."""
    if isinstance(value, Tensor) and value.dtype != FLOAT and value.dtype in HALF_TYPES:
        return value.float()
    return value


def check_range(
    name: str, value: torch.Tensor, x: torch.Tensor, axis: int | None, groups: int | None = None
) -> None:
    """Raises unless `value` is a float32 range of the right length on x's device."""
    if value.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, got {value.dtype}; convert it with .float()")
    if value.device != x.device:
        raise ValueError(
            f"{name} is on {value.device} but x is on {x.device}; move it with .to(x.device)"
        )
    if axis is None:
        if value.numel() != 1:
            raise ValueError(
                f"{name} must hold one value, got shape {tuple(value.shape)}; "
                "pass axis for one value per channel"
            )
        return
    count = x.shape[axis] if groups is None else groups
    if value.ndim != 1 or value.shape[0] != count:
        unit = "channel" if groups is None else "group of channels"
        raise ValueError(
            f"{name} must have shape ({count},), one value per {unit} of axis {axis}, "
            f"got {tuple(value.shape)}"
        )


def check_order(range_min: torch.Tensor, range_max: torch.Tensor) -> None:
    """Raises if a minimum exceeds its maximum, where reading them costs no synchronisation.

    The compiled CPU kernels make this check themselves; this one serves the reference.
    """
    if torch.compiler.is_compiling() or range_min.device.type != "cpu":
        return
    wrong = range_min > range_max
    if wrong.any():
        channel = int(wrong.flatten().nonzero()[0])
        low, high = float(range_min.flatten()[channel]), float(range_max.flatten()[channel])
        where = f" in channel {channel}" if wrong.numel() > 1 else ""
        raise ValueError(f"range_min must not exceed range_max, got {low} > {high}{where}")


def check_scale(scale: torch.Tensor) -> None:
    """Raises if a scale is not positive, where reading it costs no synchronisation."""
    if torch.compiler.is_compiling() or scale.device.type != "cpu":
        return
    wrong = (scale <= 0).flatten()
    if wrong.any():
        channel = int(wrong.nonzero()[0])
        where = f" in channel {channel}" if wrong.numel() > 1 else ""
        raise ValueError(f"scale must be positive, got {float(scale.flatten()[channel])}{where}")


def check_per_channel(name: str, value: object, x: torch.Tensor) -> None:
    """Raises unless `value` is a float32 factor for each channel of dimension 1."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"{name} must be a float32 tensor, or one in a half type, got {type(value).__name__}"
        )
    if x.ndim < 2:
        raise ValueError(
            f"x must have a channel dimension 1 for {name}, got shape {tuple(x.shape)}"
        )
    check_range(name, value, x, 1)


def check_gradient(grad: torch.Tensor, x: torch.Tensor) -> None:
    """Raises unless an incoming gradient has the shape of `x`."""
    if grad.shape != x.shape:
        raise ValueError(f"grad has shape {tuple(grad.shape)} but x has {tuple(x.shape)}")


def check_residual(residual: object, x: torch.Tensor) -> None:
    """Raises unless `residual` is None or a tensor with the type, shape and device of `x`."""
    if residual is None:
        return
    if not isinstance(residual, torch.Tensor):
        raise TypeError(f"residual must be a torch.Tensor or None, got {type(residual).__name__}")
    if residual.dtype != x.dtype:
        raise TypeError(f"residual must be of the type of x, {x.dtype}, got {residual.dtype}")
    if residual.shape != x.shape:
        raise ValueError(
            f"residual must have the shape of x, {tuple(x.shape)}, got {tuple(residual.shape)}"
        )
    if residual.device != x.device:
        raise ValueError(
            f"residual is on {residual.device} but x is on {x.device}; move it with .to(x.device)"
        )
