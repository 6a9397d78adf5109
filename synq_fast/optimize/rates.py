"""Learning rates that a recorded step reads anew each time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rate_on(device: torch.device, value: float) -> float | Tensor:
    """A rate for a group of an optimizer: on a GPU a 0-d tensor there."""
    if device.type != "cuda":
        return value
    return torch.tensor(value, dtype=torch.float32, device=device)


def set_rate(group: dict[str, Any], value: float) -> None:
    """Change the rate of a group in place."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(value)
    else:
        group["lr"] = value
