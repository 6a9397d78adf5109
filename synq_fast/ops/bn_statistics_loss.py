"""The loss on batch-normalisation statistics."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops import _library as _library
from synq_fast.ops._backend import select
from synq_fast.ops._overrides import overridden
from synq_fast.ops._tensor_checks import (
    check_float_tensor,
    check_not_empty,
    check_same_device,
    check_shape,
    shape_text,
)
from synq_fast.reference.bn_statistics_loss import bn_statistics_loss as _reference

_default = torch.ops.synq_fast.bn_statistics_loss.default
_triton = torch.ops.synq_fast.bn_statistics_loss.triton


def bn_statistics_loss(
    x: torch.Tensor, running_mean: torch.Tensor, running_var: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compares the statistics of a batch with those that a batch normalisation has stored.

    Mean and biased variance of each channel are taken over all other dimensions; each loss is the
    mean over the channels of the squared difference from the stored value. Both are differentiable
    in `x`; the stored statistics are constants.

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
        overriding: tuple[torch.Tensor, torch.Tensor] = overridden(bn_statistics_loss, locals())
        return overriding
    check_layer(x, running_mean, running_var)
    backend = select("bn_statistics_loss", x.device)
    if backend == "reference" or torch.float64 in (x.dtype, running_mean.dtype, running_var.dtype):
        return _reference(x, running_mean, running_var)
    op = _triton if backend == "triton" else _default
    mean_loss, var_loss, _ = op(x, running_mean, running_var)
    return mean_loss, var_loss


def check_layer(x: torch.Tensor, running_mean: torch.Tensor, running_var: torch.Tensor) -> None:
    """Raises unless the statistics are those of the channels of `x`."""
    check_float_tensor("x", x)
    if x.ndim < 2:
        raise ValueError(f"x must have shape (N, C, ...), got {shape_text(x)}")
    check_not_empty("x", x, "it has no statistics")
    for name, statistic in (("running_mean", running_mean), ("running_var", running_var)):
        check_float_tensor(name, statistic)
        check_shape(name, statistic, x.shape[1:2], "(C,)")
        check_same_device(name, statistic, "x", x)
