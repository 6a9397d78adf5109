"""Ways in which a tensor lies in memory, each of which some kernel treats in a way of its own."""

from collections.abc import Callable

import torch


def _channels_last(x: torch.Tensor) -> torch.Tensor | None:
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else None


def _transposed(x: torch.Tensor) -> torch.Tensor | None:
    """Dense, with the first and the last dimension in each other's place."""
    return x.transpose(0, -1).contiguous().transpose(0, -1) if x.ndim >= 2 else None


def _strided(x: torch.Tensor) -> torch.Tensor | None:
    return torch.stack([x, x], -1)[..., 0] if x.ndim else None


def _expanded(x: torch.Tensor) -> torch.Tensor | None:
    """The first row in the place of every row: other values than those given."""
    return x[:1].expand_as(x) if x.ndim and x.shape[0] else None


def _offset(x: torch.Tensor) -> torch.Tensor | None:
    """Dense, one element behind an aligned address."""
    flat = x.flatten()
    return torch.cat([flat[:1], flat])[1:].view(x.shape) if x.numel() else None


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "given": lambda x: x,
    "channels_last": _channels_last,
    "transposed": _transposed,
    "strided": _strided,
    "expanded": _expanded,
    "offset": _offset,
}


def converted(
    x: torch.Tensor, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> torch.Tensor:
    """Returns the tensor in another type or on another device with the gaps that it has here."""
    whole = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.detach().untyped_storage())
    whole = whole.to(device or x.device, dtype or x.dtype)
    return whole.as_strided(x.size(), x.stride(), x.storage_offset())


OTHER_VALUES = ("expanded",)
DENSE = ("given", "channels_last", "transposed", "offset")


def lay_out(
    tensors: tuple[torch.Tensor, ...], layout: str, which: tuple[int, ...]
) -> tuple[torch.Tensor, ...] | None:
    """Returns the tensors with those of `which` in a layout, or None if none of them has it."""
    laid = {i: LAYOUTS[layout](tensors[i]) for i in which if i < len(tensors)}
    if layout != "given" and not any(x is not None for x in laid.values()):
        return None
    # mypy does not see that what is left is no None.
    return tuple(x if laid.get(i) is None else laid[i] for i, x in enumerate(tensors))  # type: ignore[misc]
