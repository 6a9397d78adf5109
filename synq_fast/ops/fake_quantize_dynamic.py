"""Fake quantization over the tensor's own range."""

import torch
from torch.overrides import has_torch_function_unary

from synq_fast import reference
from synq_fast.ops import _library as _library
from synq_fast.ops._backend import select
from synq_fast.ops._checks import check_bits, check_flag, check_input, check_ste
from synq_fast.ops._overrides import overridden

_default = torch.ops.synq_fast.fake_quantize_dynamic.default
_triton = torch.ops.synq_fast.fake_quantize_dynamic.triton


def fake_quantize_dynamic(
    x: torch.Tensor,
    bits: int,
    *,
    axis: int | None = None,
    groups: int | None = None,
    symmetric: bool = False,
    ste: str = "identity",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fake quantization of `x` from its exact minimum to its exact maximum.

    The same grid as `fake_quantize`, over the extrema of the whole tensor or, with `axis`, of every
    index of that dimension or every run of them. This is how weights are quantized. The ranges are
    constants to autograd. `fake_quantize` and `quantize_codes` over the ranges returned give the
    same values bit for bit.

    `symmetric` widens the range to the one around zero. With `a = max(|min|, |max|, 5e-9)` it is
    `[-(1 + 2^-20) a, a]`: from exactly `-a`, `s * range_min` would be a tie, and a rounding error
    of `s` would decide between the zero points 0 and 1. This way the zero point is 0 for every
    width, and the codes stay within `2^(bits - 1) - 1` on both sides.

    Args:
        x: Any shape; float32, float16 or bfloat16.
        bits: Width of the codes, from 2 to 16.
        axis: The dimension that has one range per index; None for one range in all.
        groups: Splits the channels of `axis` into so many equal runs of consecutive channels that
            share a range. None gives each channel its own.
        symmetric: Whether the range lies around zero, for codes without a zero point.
        ste: Straight-through gradient, as in `fake_quantize`. With "clip" only values that land
            half a step beyond the last level lose their gradient.

    Returns:
        `(y, range_min, range_max)`: `y` has the shape, type and layout of `x`; the ranges are
        float32, `()`, `(C,)` or `(groups,)`. A NaN makes its range and all values of its range NaN.
        Without elements there is no range, and NaN is returned for it.

    Raises:
        TypeError: `x`, `bits`, `axis`, `groups` or `symmetric` is of another type than said above.
        ValueError: `bits` or `ste` is none of the allowed values, or `groups` does not divide the
            channels or comes without `axis`.
        IndexError: `axis` is not a dimension of `x`.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: the weight quantizer of ZeroQ (CVPR 2020) and GDFQ (ECCV 2020), used by SynQ (ICLR
    2025).
    """
    if has_torch_function_unary(x):
        overriding: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = overridden(
            fake_quantize_dynamic, locals()
        )
        return overriding
    check_bits(bits)
    clip = check_ste(ste)
    check_flag("symmetric", symmetric)
    check_input(x, axis, groups)
    backend = select("fake_quantize_dynamic", x.device)
    if backend == "reference":
        return reference.fake_quantize_dynamic(
            x, bits, axis=axis, groups=groups, symmetric=symmetric, ste=ste
        )
    op = _triton if backend == "triton" else _default
    y, range_min, range_max = op(x, bits, axis, groups, symmetric, clip)
    return y, range_min, range_max
