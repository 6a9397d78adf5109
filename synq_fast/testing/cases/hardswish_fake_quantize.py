"""Hard-swish with fake quantization over a learned grid."""

import torch
from torch.nn import functional

from synq_fast.testing.cases._activation import make_case


def hardswish(x: torch.Tensor) -> torch.Tensor:
    """The definition, in the type of `x`."""
    return x * functional.relu6(x + 3) / 6


CASE = make_case("hardswish", hardswish, functional.hardswish, steepest=1.5)
