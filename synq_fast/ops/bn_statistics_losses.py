"""The loss on the batch-normalisation statistics of all layers of a network."""

from collections.abc import Sequence

import torch
from torch.overrides import has_torch_function

from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import register
from synq_fast.ops._tensor_checks import check_number
from synq_fast.ops.bn_statistics_loss import check_layer, gradient_of, statistics_of
from synq_fast.reference.bn_statistics_losses import bn_statistics_losses as _plain

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]


def _check(
    inputs: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    weights: Sequence[float],
) -> None:
    if len(inputs) == 0:
        raise ValueError("inputs is empty: there is no layer to compare")
    lengths = {"running_means": running_means, "running_vars": running_vars, "weights": weights}
    for name, values in lengths.items():
        if len(values) != len(inputs):
            raise ValueError(
                f"{name} must have one entry per layer, {len(inputs)}, got {len(values)}"
            )
    for layer in zip(inputs, running_means, running_vars, strict=True):
        check_layer(*layer)
    for i, (x, weight) in enumerate(zip(inputs, weights, strict=True)):
        check_number(f"weights[{i}]", weight)
        if x.device != inputs[0].device:
            raise ValueError(
                f"inputs[{i}] is on {x.device} but inputs[0] is on {inputs[0].device}; "
                "move all to one device"
            )


def _fake(
    inputs: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    weights: Sequence[float],
) -> Pair:
    _check(inputs, running_means, running_vars, weights)
    x, channels = inputs[0], sum(x.shape[1] for x in inputs)
    loss = x.new_empty((), dtype=torch.float32)
    return loss, x.new_empty((3, channels), dtype=torch.float64)


def _fake_backward(
    loss: Tensor, inputs: Sequence[Tensor], statistics: Tensor, weights: Sequence[float]
) -> list[Tensor]:
    return [torch.empty_like(x) for x in inputs]


def _reference(
    inputs: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    weights: Sequence[float],
) -> Pair:
    layers = [
        statistics_of(*layer) for layer in zip(inputs, running_means, running_vars, strict=True)
    ]
    losses = [layer[1:].square().mean(1).sum() for layer in layers]
    total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
    return torch.as_tensor(total).float(), torch.cat(layers, 1)


def _reference_backward(
    loss: Tensor, inputs: Sequence[Tensor], statistics: Tensor, weights: Sequence[float]
) -> list[Tensor]:
    layers = statistics.split([x.shape[1] for x in inputs], 1)
    return [
        gradient_of(x, layer, loss * weight, loss * weight)
        for x, layer, weight in zip(inputs, layers, weights, strict=True)
    ]


# `statistics` are those of `bn_statistics_loss`, layer after layer.
register(
    "bn_statistics_losses_backward",
    "(Tensor loss, Tensor[] inputs, Tensor statistics, float[] weights) -> Tensor[]",
    fake=_fake_backward,
    reference=_reference_backward,
    once="bn_statistics_losses",
)
_op = register(
    "bn_statistics_losses",
    "(Tensor[] inputs, Tensor[] running_means, Tensor[] running_vars, float[] weights)"
    " -> (Tensor loss, Tensor statistics)",
    fake=_fake,
    reference=_reference,
    gradients={"inputs": "bn_statistics_losses_backward(grad_loss, inputs, statistics, weights)"},
)


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
        overriding: Tensor = overridden(bn_statistics_losses, locals())
        return overriding
    if weights is None:
        weights = (1.0,) * len(inputs)
    else:
        _check(inputs, running_means, running_vars, weights)
    if not 0 < len(inputs) == len(running_means) == len(running_vars):
        _check(inputs, running_means, running_vars, weights)
    # A layer that does not count is not read: it may hold anything.
    kept = [i for i, weight in enumerate(weights) if weight]
    tensors = [[values[i] for i in kept] for values in lists]
    op = _op.on(*(value for values in tensors for value in values)) if kept else _op.on(inputs[0])
    if not kept:
        return _plain(inputs, running_means, running_vars, weights)
    if op is None:
        _check(inputs, running_means, running_vars, weights)
        return _plain(inputs, running_means, running_vars, weights)
    try:
        loss: Tensor = op(*tensors, [weights[i] / len(inputs) for i in kept])[0]
    except Exception as error:
        _op.refuse(error, inputs, running_means, running_vars, weights)
    return loss
