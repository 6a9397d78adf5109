"""Ranges of attention's probabilities, by the error of what they are multiplied to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from synq_fast.graph import called_module
from synq_fast.graph.attention import Attention, stacking
from synq_fast.graph.taps import Tapped
from synq_fast.quant.activations import ActivationQuantizer, bypassing
from synq_fast.quant.log_quantizer import LogQuantizer
from synq_fast.runtime.out_of_memory import memory_errors

SHARES = tuple(1 - n / 20 for n in range(20))
"""Of the largest probability: the ends of uniform grids that are tried."""
OCTAVES = tuple(2 ** -(n / 2) for n in range(16))
"""The same of grids of powers of two."""


@torch.no_grad()
def fit_probabilities(
    student: fx.GraphModule, attentions: Sequence[Attention], images: Tensor
) -> int:
    """Give the probabilities of each attention the range with which their product errs least.

    Probabilities are mostly near zero, and few matter: at four bits a range that fits their own
    values loses most of what the values behind them add up to. Of ranges from 0 to ``SHARES`` of
    the largest probability (``OCTAVES`` of it for powers of two), each attention takes the one with
    the least squared error of probabilities times values, both of the float network, so that no
    order matters.

    Args:
        student: quantized network with its other ranges; changed in place.
        attentions: of its graph.
        images: (B, C, H, W), all at once.

    Returns:
        How many attentions have quantized probabilities.

    Raises:
        OutOfMemoryError: the images do not fit.
    """
    nodes = {node.name: node for node in student.graph.nodes}
    found: list[tuple[ActivationQuantizer, str, str]] = []
    orders = []
    for attention in attentions:
        probabilities, values = nodes[attention.output].all_input_nodes
        quantizer = called_module(student, probabilities)
        if isinstance(quantizer, ActivationQuantizer):
            source = probabilities.all_input_nodes[0]
            found.append((quantizer, source.name, values.name))
            orders.append(stacking(nodes[attention.output]))
    read = [name for _, *names in found for name in names]
    memory = memory_errors(
        "the ranges of attention's probabilities", "lower quantization.calibration_batch_size"
    )
    with memory, bypassing(student):
        seen = Tapped(student, read)(images).features
        for (quantizer, *_), order, p, v in zip(found, orders, seen[::2], seen[1::2], strict=True):
            quantizer.range_min.zero_()
            if order is not None:
                p, v = p.permute(order[0]), v.permute(order[1])
            end = best_end(p.float(), v.float(), quantizer)
            quantizer.range_max.copy_(end * quantizer.shrink)
    return len(found)


def best_end(probabilities: Tensor, values: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """The upper end of the range from 0 with the least squared error of the product.

    Args:
        probabilities: (B, H, N, M), or (..., N, M) without heads.
        values: (B, H, M, D), or (..., M, D).
        quantizer: of the probabilities; where it has heads there is an end for each, (H,), else one
            for all, 0-d.
    """
    if quantizer.heads is not None:
        pairs = zip(probabilities.unbind(1), values.unbind(1), strict=True)
        return torch.stack([_best_end(p, v, quantizer) for p, v in pairs])
    return _best_end(probabilities, values, quantizer)


def _best_end(probabilities: Tensor, values: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    exact, largest = probabilities @ values, probabilities.amax()
    tried = OCTAVES if isinstance(quantizer, LogQuantizer) else SHARES
    ends = [largest * share for share in tried]
    errors = [
        (quantizer.rounded(probabilities, end) @ values - exact).double().square().sum()
        for end in ends
    ]
    return ends[int(torch.stack(errors).argmin())]
