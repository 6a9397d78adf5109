"""The loss on batch-normalisation statistics."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.ops._tensor_checks import (
    check_float_tensor,
    check_not_empty,
    check_same_device,
    check_shape,
    shape_text,
)
from synq_fast.reference.bn_statistics_loss import bn_statistics_loss as _plain
from synq_fast.reference.bn_statistics_loss import mean_and_variance

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


def check_layer(x: Tensor, running_mean: Tensor, running_var: Tensor) -> None:
    """Raises unless the statistics are those of the channels of `x`."""
    _check(x)
    for name, statistic in (("running_mean", running_mean), ("running_var", running_var)):
        check_float_tensor(name, statistic)
        check_shape(name, statistic, x.shape[1:2], "(C,)")
        check_same_device(name, statistic, "x", x)


def _check(x: Tensor) -> None:
    check_float_tensor("x", x)
    if x.ndim < 2:
        raise ValueError(f"x must have shape (N, C, ...), got {shape_text(x)}")
    check_not_empty("x", x, "it has no statistics")


def _fake(x: Tensor, running_mean: Tensor, running_var: Tensor) -> Triple:
    check_layer(x, running_mean, running_var)
    mean_loss, var_loss = (x.new_empty((), dtype=torch.float32) for _ in range(2))
    return mean_loss, var_loss, x.new_empty((3, x.shape[1]), dtype=torch.float64)


def _fake_backward(
    mean_loss: Tensor | None, var_loss: Tensor | None, x: Tensor, statistics: Tensor
) -> Tensor:
    _check(x)
    check_shape("statistics", statistics, (3, x.shape[1]), "(3, C)")
    return torch.empty_like(x)


def statistics_of(x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """Returns per channel the mean and the two differences, (3, C) in float64."""
    mean, var = (value.double() for value in mean_and_variance(x.float()))
    return torch.stack([mean, mean - running_mean, var - running_var])


def gradient_of(
    x: Tensor, statistics: Tensor, mean_loss: Tensor | None, var_loss: Tensor | None
) -> Tensor:
    """Returns the gradient of x, which is affine in x per channel."""
    mean, mean_error, var_error = statistics
    count = x.numel() // x.shape[1]
    factor = 2 / x.shape[1] / count
    slope = 2 * factor * var_error * (0.0 if var_loss is None else var_loss)
    offset = factor * mean_error * (0.0 if mean_loss is None else mean_loss)
    shape = (-1, *(1 for _ in x.shape[2:]))
    near, slope, offset = (value.float().view(shape) for value in (mean, slope, offset))
    return like(((x.float() - near) * slope + offset).to(x.dtype), x)


def _reference(x: Tensor, running_mean: Tensor, running_var: Tensor) -> Triple:
    statistics = statistics_of(x, running_mean, running_var)
    mean_loss, var_loss = statistics[1:].square().mean(1).float().unbind()
    return mean_loss.clone(), var_loss.clone(), statistics


def _reference_backward(
    mean_loss: Tensor | None, var_loss: Tensor | None, x: Tensor, statistics: Tensor
) -> Tensor:
    return gradient_of(x, statistics, mean_loss, var_loss)


# `statistics`, (3, channels) in float64: per channel the mean, its difference from the running mean
# and that of the variance.
register(
    "bn_statistics_loss_backward",
    "(Tensor? mean_loss, Tensor? var_loss, Tensor x, Tensor statistics) -> Tensor",
    fake=_fake_backward,
    reference=_reference_backward,
    once="bn_statistics_loss",
)
_op = register(
    "bn_statistics_loss",
    "(Tensor x, Tensor running_mean, Tensor running_var)"
    " -> (Tensor mean_loss, Tensor var_loss, Tensor statistics)",
    fake=_fake,
    reference=_reference,
    gradients={"x": "bn_statistics_loss_backward(grad_mean_loss, grad_var_loss, x, statistics)"},
)


def bn_statistics_loss(
    x: torch.Tensor, running_mean: torch.Tensor, running_var: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compares the statistics of a batch with those that a batch normalisation has stored.

    With mean and biased variance of each channel over all other dimensions:

        mean_loss = sum_c (mean_c - running_mean_c)^2 / C
        var_loss = sum_c (variance_c - running_var_c)^2 / C

    Both are differentiable in `x`; the stored statistics are constants.

    Args:
        x: Input of the normalisation, `(N, C, ...)`; float16, bfloat16, float32 or float64.
        running_mean: Stored mean, `(C,)`, a floating type.
        running_var: Stored variance, `(C,)`, a floating type.

    Returns:
        `(mean_loss, var_loss)`, 0-d float32 tensors (float64 if an input is float64) whatever the
        autocast state.

    Raises:
        TypeError: A tensor is not floating.
        ValueError: `x` is empty or has fewer than two dimensions, or the shapes or devices do not
            agree.
        BackendUnavailableError: The backend asked for has no kernel for this op.

    Source: Yin et al., "Dreaming to Distill" (DeepInversion), CVPR 2020, eq. 4, with squared
    differences averaged over the channels.
    """
    if has_torch_function_variadic(x, running_mean, running_var):
        overriding: Pair = overridden(bn_statistics_loss, locals())
        return overriding
    op = _op.on(x, running_mean, running_var)
    if op is None:
        check_layer(x, running_mean, running_var)
        return _plain(x, running_mean, running_var)
    try:
        mean_loss, var_loss, _ = op(x, running_mean, running_var)
    except Exception as error:
        _op.refuse(error, x, running_mean, running_var)
    return mean_loss, var_loss
