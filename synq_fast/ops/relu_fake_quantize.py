"""ReLU and fake quantization in one pass."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast import reference
from synq_fast.ops import _library as _library
from synq_fast.ops._backend import select
from synq_fast.ops._checks import (
    check_bits,
    check_input,
    check_order,
    check_ste,
    check_upper,
    to_ranges,
)
from synq_fast.ops._overrides import overridden

_default = torch.ops.synq_fast.relu_fake_quantize.default
_triton = torch.ops.synq_fast.relu_fake_quantize.triton


def relu_fake_quantize(
    x: torch.Tensor,
    range_min: torch.Tensor | float,
    range_max: torch.Tensor | float,
    bits: int,
    *,
    axis: int | None = None,
    upper: float | None = None,
    ste: str = "identity",
) -> torch.Tensor:
    """`fake_quantize(relu(x))` in one read and one write.

    Every backend gives the bits of the two ops in a row. NaN gives NaN.

    Args:
        x: Any shape; float32, float16 or bfloat16.
        range_min: Lower bound, as in `fake_quantize`: a number, or a tensor with one element, or
            `(C,)` with `axis`. It receives no gradient.
        range_max: Upper bound, like `range_min`.
        bits: Width of the codes, from 2 to 16.
        axis: The dimension that has one range per index; None for one range in all.
        upper: Clamps the activation from above, 6 for ReLU6; None for a plain ReLU.
        ste: Straight-through gradient of the quantizer, as in `fake_quantize`. The gradient is zero
            where `x <= 0` or `x >= upper`, and with "clip" where the quantizer clamps.

    Returns:
        The quantized activations, with the shape, type and layout of `x`.

    Raises:
        TypeError: `x`, a range, `bits`, `axis` or `upper` is of another type than said above.
        ValueError: `bits` or `ste` is none of the allowed values, `upper` is not positive and
            finite, a range has the wrong length or device, or `range_min > range_max` (for tensors
            on a GPU the values are not read).
        IndexError: `axis` is not a dimension of `x`.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: the activation quantizers of SynQ (ICLR 2025) sit behind each ReLU; ReLU6: MobileNetV2
    (Sandler et al., CVPR 2018).
    """
    if has_torch_function_variadic(x, range_min, range_max):
        overriding: torch.Tensor = overridden(relu_fake_quantize, locals())
        return overriding
    check_bits(bits)
    clip = check_ste(ste)
    check_upper(upper)
    check_input(x, axis)
    low, high = to_ranges(x, range_min, range_max, axis)
    backend = select("relu_fake_quantize", x.device)
    if backend == "reference":
        check_order(low, high)
        return reference.relu_fake_quantize(x, low, high, bits, axis=axis, upper=upper, ste=ste)
    op = _triton if backend == "triton" else _default
    result: torch.Tensor = op(x, low, high, bits, axis, upper, clip)
    return result
