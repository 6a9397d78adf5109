"""SiLU with fake quantization over a learned grid."""

import torch
from torch.nn import functional

from synq_fast.testing.cases._activation import make_case


def silu(x: torch.Tensor) -> torch.Tensor:
    """The definition, in the type of `x`."""
    return x / (1 + torch.exp(-x))


CASE = make_case("silu", silu, functional.silu, steepest=1.1)
