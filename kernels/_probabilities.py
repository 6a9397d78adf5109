"""The two grids of probabilities: equal steps from zero, and powers of two if LOG.

Equal steps have half the number of codes as zero point, powers of two a least ratio.
"""

import triton
import triton.language as tl

from synq_fast.kernels._affine import dequantize, quantize
from synq_fast.kernels._channel_sums import learned_terms
from synq_fast.kernels._log_grid import least_ratio, log_level, log_terms


def probability_grid(bits: int, log2: bool) -> tuple[float, int]:
    """Returns `half` and `least`, which kernels are given beside LOG."""
    return float(2 ** (bits - 1)), least_ratio(bits) if log2 else 0


@triton.jit
def probability_code(p, scale, half, least, LOG: tl.constexpr):
    """Returns levels in units of the grid, whose sums `probability_value` scales."""
    if LOG:
        code = log_level(tl.div_rn(p, scale), least)
    else:
        code = quantize(p, scale, half, -half, half - 1.0) + half
    return code


@triton.jit
def probability_value(code, scale, LOG: tl.constexpr):
    """Returns what codes, or sums of them, stand for."""
    return scale * code if LOG else dequantize(code, scale, 0.0)


@triton.jit
def probability_terms(gradient, p, scale, half, least, LOG: tl.constexpr):
    """Returns the gradient of probabilities, and terms of that of the scale."""
    if LOG:
        of_p, of_scale = log_terms(gradient, p, scale, least)
    else:
        of_p, of_scale, _ = learned_terms(gradient, p, scale, half, half)
    return of_p, of_scale
