"""GELU with fake quantization over a learned grid."""

import math

import torch
from torch.nn import functional

from synq_fast.testing.cases._activation import make_case


def gelu(x: torch.Tensor) -> torch.Tensor:
    """The definition, in the type of `x`."""
    return x * (0.5 * torch.erfc(x * -math.sqrt(0.5)))


CASE = make_case("gelu", gelu, functional.gelu, steepest=1.13)
