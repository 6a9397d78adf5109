"""Mean and variance of every channel of every image."""

import torch
from torch.overrides import has_torch_function_unary

from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.ops._tensor_checks import check_float_tensor, shape_text
from synq_fast.reference.channel_moments import channel_moments as _plain

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]


def _check(x: Tensor) -> None:
    check_float_tensor("x", x)
    if x.ndim < 2:
        raise ValueError(f"x must have shape (B, C, ...), got {shape_text(x)}")


def _fake(x: Tensor) -> Pair:
    _check(x)
    mean, variance = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
    return mean, variance


def _fake_backward(
    of_mean: Tensor | None, of_variance: Tensor | None, x: Tensor, mean: Tensor
) -> Tensor:
    _check(x)
    for name, value in {"of_mean": of_mean, "of_variance": of_variance, "mean": mean}.items():
        if value is None:
            continue
        if value.shape != x.shape[:2] or value.dtype != torch.float32:
            raise ValueError(
                f"{name} must be a float32 tensor of shape {tuple(x.shape[:2])}, got "
                f"{value.dtype} {tuple(value.shape)}"
            )
    return torch.empty_like(x)


def _reference_backward(
    of_mean: Tensor | None, of_variance: Tensor | None, x: Tensor, mean: Tensor
) -> Tensor:
    shape = (*x.shape[:2], *(1 for _ in x.shape[2:]))
    positions = max(x.shape[2:].numel(), 1)
    result = torch.zeros_like(x, dtype=torch.float32)
    if of_variance is not None:
        result = (x.float() - mean.reshape(shape)) * (of_variance * 2 / positions).reshape(shape)
    if of_mean is not None:
        result = result + (of_mean / positions).reshape(shape)
    return like(result.to(x.dtype), x)


register(
    "channel_moments_backward",
    "(Tensor? of_mean, Tensor? of_variance, Tensor x, Tensor mean) -> Tensor",
    fake=_fake_backward,
    reference=_reference_backward,
    once="channel_moments",
)
_op = register(
    "channel_moments",
    "(Tensor x) -> (Tensor mean, Tensor variance)",
    fake=_fake,
    reference=_plain,
    gradients={"x": "channel_moments_backward(grad_mean, grad_variance, x, mean)"},
)


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
        overriding: Pair = overridden(channel_moments, locals())
        return overriding
    op = _op.on(x)
    if op is None:
        _check(x)
        return _plain(x)
    try:
        mean, variance = op(x)
    except Exception as error:
        _op.refuse(error, x)
    return mean, variance
