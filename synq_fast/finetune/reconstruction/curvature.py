"""How much each element of a block's value counts: the diagonal of the logits' curvature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from synq_fast.finetune.reconstruction.activations import BlockValues
from synq_fast.runtime.precision import tensor_float32


def curvature_weights(
    values: BlockValues,
    block: Callable[[Tensor], Tensor],
    rest: Callable[[Tensor], Tensor],
    *,
    batch_size: int,
    device: torch.device,
    precision: str = "float32",
) -> Tensor:
    """Weights of a block's squared distances (...), of mean 1, as its value is without the images.

    With ``dz = z_Q - z_T`` the difference of a block's value before it is trained, and ``g`` the
    gradient of KL(float || quantized) of the logits at ``z_Q``, which the float rest of the network
    makes of it, each element's curvature is ``sum(g dz) / sum(dz^2)`` over the images: the gradient
    at ``z_T`` is zero, so that this is the slope between the two (LS-ViT, CVPR 2026, its diagonal
    alone; APHQ-ViT, CVPR 2025, and BRECQ, arXiv 2102.05426, weigh the same distances by other
    estimates). An element on which the images see a negative curvature counts nothing.

    Args:
        values: what the block reads and should give.
        block: the quantized block as it is.
        rest: the float network from the block's value to the logits.
        batch_size: images that are worked on together.
        device: where.
        precision: of products and convolutions on a GPU, "tf32" or else float32.
    """
    slope: Tensor | None = None
    for start in range(0, len(values), batch_size):
        chosen = torch.arange(start, min(start + batch_size, len(values)), device="cpu")
        inputs, _, targets, *_ = values.take(chosen, device)
        with torch.no_grad(), tensor_float32(precision == "tf32"):
            quantized = block(inputs)
            expected = rest(targets).flatten(1).log_softmax(1)
        change = quantized - targets
        with torch.enable_grad(), tensor_float32(precision == "tf32"):
            at = quantized.detach().requires_grad_()
            found = rest(at).flatten(1).log_softmax(1)
            loss = functional.kl_div(found, expected, log_target=True, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, at)
        part = torch.stack([(gradient * change).double().sum(0), change.double().square().sum(0)])
        slope = part if slope is None else slope + part
    assert slope is not None
    curvature = (slope[0] / slope[1]).nan_to_num(0.0, 0.0, 0.0).clamp_min(0)
    mean = curvature.mean()
    if not mean > 0:  # nothing is quantized, or nothing reaches the logits
        return torch.ones_like(curvature, dtype=torch.float32)
    return (curvature / mean).float()
