"""The kernels of the low-pass filter against float64, and half types against float32."""

from itertools import product

import torch

from synq_fast import ops, reference

SIZES = ((1, 1), (5, 7), (8, 6), (12, 20), (32, 32), (33, 47), (97, 64))
KINDS = ("gaussian", "butterworth", "ideal")
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def main() -> int:
    """Goes through sizes, kinds and layouts."""
    cases = list(product(SIZES, KINDS, LAYOUTS))
    for size, kind, layout in cases:
        x = torch.randn(3, 5, *size).to(memory_format=layout)
        expected = reference.low_pass(x.double(), 6.0, kind=kind)
        assert (ops.low_pass(x, 6.0, kind=kind) - expected).abs().max() <= 5e-6, (size, kind)
        for dtype in (torch.float16, torch.bfloat16):
            half = x.to(dtype)
            wanted = ops.low_pass(half.float(), 6.0, kind=kind).to(dtype)
            assert torch.equal(ops.low_pass(half, 6.0, kind=kind), wanted), (size, kind, dtype)
    return len(cases)
