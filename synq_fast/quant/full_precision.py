"""Modules whose own numbers stay float32 when the network around them changes its type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class FullPrecision(nn.Module):
    """``.half()``, ``.to(dtype)`` and the like move the module's tensors and leave their type.

    Ranges and scales are float32 in every op; rounding a range to half precision would move every
    level of its quantizer.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {
            name: value.detach()
            for name, value in (*self._parameters.items(), *self._buffers.items())
            if value is not None and value.dtype == torch.float32
        }
        super()._apply(fn, recurse)
        for name, value in before.items():
            now = getattr(self, name)
            if now.dtype != torch.float32:
                now.data = value.to(now.device) if not now.is_meta else now.data.float()
        return self
