"""The loss on the batch-normalisation statistics of all layers of a network."""

from collections.abc import Sequence

import torch
from torch.overrides import has_torch_function

from synq_fast.ops import _library as _library
from synq_fast.ops._backend import select
from synq_fast.ops._overrides import overridden
from synq_fast.ops._tensor_checks import check_number
from synq_fast.ops.bn_statistics_loss import check_layer
from synq_fast.reference.bn_statistics_losses import bn_statistics_losses as _reference

_default = torch.ops.synq_fast.bn_statistics_losses.default
_triton = torch.ops.synq_fast.bn_statistics_losses.triton


def bn_statistics_losses(
    inputs: Sequence[torch.Tensor],
    running_means: Sequence[torch.Tensor],
    running_vars: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
) -> torch.Tensor:
    """Averages the losses on the statistics of N layers.

    `sum_n w_n (mean_loss_n + var_loss_n) / N`, each pair as `bn_statistics_loss` gives it. One
    call and one autograd node for the whole network; differentiable in the inputs.

    Args:
        inputs: Input of each normalisation, `(N, C, ...)`; float16, bfloat16, float32 or float64,
            all on one device.
        running_means: Stored mean of each layer, `(C,)`, a floating type.
        running_vars: Stored variance of each layer, `(C,)`, a floating type.
        weights: Finite factor w_n of each layer; None for ones. A layer of weight 0 is not read
            and receives no gradient.

    Returns:
        A 0-d float32 tensor (float64 if some input is float64) whatever the autocast state.

    Raises:
        TypeError: A tensor is not floating, or a weight is not a number.
        ValueError: There is no layer, the sequences differ in length, or a layer's `x` is empty,
            has fewer than two dimensions, or does not agree with its statistics in shape or device.
        BackendUnavailableError: The backend asked for has no kernel for this op.

    Source: Yin et al., "Dreaming to Distill" (DeepInversion), CVPR 2020, eq. 4; layer weights as in
    TexQ (NeurIPS 2023).
    """
    lists = (inputs, running_means, running_vars)
    if has_torch_function(lists) or any(map(has_torch_function, lists)):
        overriding: torch.Tensor = overridden(bn_statistics_losses, locals())
        return overriding
    if len(inputs) == 0:
        raise ValueError("inputs is empty: there is no layer to compare")
    lengths = {"running_means": running_means, "running_vars": running_vars, "weights": weights}
    for name, values in lengths.items():
        if values is not None and len(values) != len(inputs):
            raise ValueError(
                f"{name} must have one entry per layer, {len(inputs)}, got {len(values)}"
            )
    weights = (1.0,) * len(inputs) if weights is None else weights
    for layer in zip(inputs, running_means, running_vars, strict=True):
        check_layer(*layer)
    for i, (x, weight) in enumerate(zip(inputs, weights, strict=True)):
        check_number(f"weights[{i}]", weight)
        if x.device != inputs[0].device:
            raise ValueError(
                f"inputs[{i}] is on {x.device} but inputs[0] is on {inputs[0].device}; "
                "move all to one device"
            )
    backend = select("bn_statistics_losses", inputs[0].device)
    # A layer that does not count is not read: it may hold anything.
    kept = [i for i, weight in enumerate(weights) if weight]
    tensors = [[values[i] for i in kept] for values in (inputs, running_means, running_vars)]
    double = any(value.dtype == torch.float64 for values in tensors for value in values)
    if not kept:
        return inputs[0].new_zeros((), dtype=torch.float64 if double else torch.float32)
    if backend == "reference" or double:
        return _reference(inputs, running_means, running_vars, weights)
    op = _triton if backend == "triton" else _default
    loss: torch.Tensor = op(*tensors, [weights[i] / len(inputs) for i in kept])[0]
    return loss
