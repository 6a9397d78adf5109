"""The memory format that convolutional networks run in."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

_M = TypeVar("_M", bound=nn.Module)


def channels_last(module: _M) -> _M:
    """Bring a module's parameters into channels_last, in place, and return it."""
    # torch's stubs lack the form with a memory format alone.
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module
