"""Mean and variance of every channel of every image."""

import torch
from torch.overrides import has_torch_function_unary

from synq_fast.ops import _library as _library
from synq_fast.ops._backend import select
from synq_fast.ops._overrides import overridden
from synq_fast.ops._tensor_checks import check_float_tensor, shape_text
from synq_fast.reference.channel_moments import channel_moments as _reference

_default = torch.ops.synq_fast.channel_moments.default
_triton = torch.ops.synq_fast.channel_moments.triton


def channel_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and biased variance of `x` over the positions of each channel, in one read.

    They give the moments of any affine map of the channels too: `mean((x w + b)^2)` is
    `w^2 variance + (w mean + b)^2`. The variance is that of the distances from the mean, so a mean
    far from zero costs it no accuracy.

    Args:
        x: `(B, C, ...)`; float16, bfloat16, float32 or float64. Contiguous and channels_last
            memory is read where it lies.

    Returns:
        `(mean, variance)`, both `(B, C)` in float32 (float64 if `x` is) whatever the autocast
        state. Blocks are summed in float32 about a value near their mean and merged in a fixed
        order, parts of a channel in float64. Without a position both are NaN, as those of torch;
        NaN propagates, and an infinity makes the mean infinite or NaN and the variance NaN. The
        gradient of `x` is `of_mean / n + of_variance * 2 (x - mean) / n` with the mean in float32;
        the kernels know no second derivative.

    Raises:
        TypeError: `x` is not a floating tensor.
        ValueError: `x` has fewer than two dimensions.
        BackendUnavailableError: The backend asked for has no kernel for this op.

    Source: the statistics of features that HAST (Li et al., "Hard Sample Matters a Lot in Zero-Shot
    Quantization", CVPR 2023) aligns, taken before a batch normalisation instead of after it.
    """
    if has_torch_function_unary(x):
        overriding: tuple[torch.Tensor, torch.Tensor] = overridden(channel_moments, locals())
        return overriding
    check_float_tensor("x", x)
    if x.ndim < 2:
        raise ValueError(f"x must have shape (B, C, ...), got {shape_text(x)}")
    backend = select("channel_moments", x.device)
    if backend == "reference" or x.dtype == torch.float64:
        return _reference(x)
    mean, mean_square = (_triton if backend == "triton" else _default)(x)
    return mean, mean_square
