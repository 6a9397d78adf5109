"""Mean and mean square of every channel of every image."""

import torch

from synq_fast.ops import _library as _library
from synq_fast.ops._backend import select
from synq_fast.ops._tensor_checks import check_float_tensor, shape_text
from synq_fast.reference.channel_moments import channel_moments as _reference

_default = torch.ops.synq_fast.channel_moments.default
_triton = torch.ops.synq_fast.channel_moments.triton


def channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the means of `x` and of `x * x` over the positions of each channel, in one read.

    They give the moments of any affine map of the channels too: `mean((x w + b)^2)` is
    `w^2 mean_square + 2 w b mean + b^2`.

    Args:
        x: `(B, C, ...)`; float16, bfloat16, float32 or float64. Contiguous and channels_last
            memory is read where it lies.

    Returns:
        `(mean, mean_square)`, both `(B, C)` in float32 (float64 if `x` is) whatever the autocast
        state. Blocks are summed in float32 and put together in float64, in a fixed order. Without a
        position a mean is NaN, as that of torch; NaN and infinities propagate. The gradient of `x`
        is one product and sum per element; there is no second derivative.

    Raises:
        TypeError: `x` is not a floating tensor.
        ValueError: `x` has fewer than two dimensions.
        BackendUnavailableError: The backend asked for has no kernel for this op.

    Source: the statistics of features that HAST (Li et al., "Hard Sample Matters a Lot in Zero-Shot
    Quantization", CVPR 2023) aligns, taken before a batch normalisation instead of after it.
    """
    check_float_tensor("x", x)
    if x.ndim < 2:
        raise ValueError(f"x must have shape (B, C, ...), got {shape_text(x)}")
    backend = select("channel_moments", x.device)
    if backend == "reference" or x.dtype == torch.float64:
        return _reference(x)
    mean, mean_square = (_triton if backend == "triton" else _default)(x)
    return mean, mean_square
