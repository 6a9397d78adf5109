"""Ranges of attention's probabilities, by the error of what they are multiplied to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from synq_fast import ops
from synq_fast.graph import called_module
from synq_fast.graph.attention import Attention
from synq_fast.graph.taps import Tapped
from synq_fast.quant.activations import ActivationQuantizer, bypassing
from synq_fast.runtime.out_of_memory import memory_errors

SHARES = 20


@torch.no_grad()
def fit_probabilities(
    student: fx.GraphModule, attentions: Sequence[Attention], images: Tensor
) -> int:
    """Give the probabilities of each attention the range with which their product errs least.

    Probabilities are mostly near zero, and few matter: at four bits a range that fits their own
    values loses most of what the values behind them add up to. Of ``SHARES`` ranges from 0 to a
    share of the largest probability, each attention takes the one with the least squared error of
    probabilities times values, both of the float network, so that no order matters.

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
    for attention in attentions:
        probabilities, values = nodes[attention.output].all_input_nodes
        quantizer = called_module(student, probabilities)
        if isinstance(quantizer, ActivationQuantizer):
            source = probabilities.all_input_nodes[0]
            found.append((quantizer, source.name, values.name))
    read = [name for _, *names in found for name in names]
    memory = memory_errors(
        "the ranges of attention's probabilities", "lower quantization.calibration_batch_size"
    )
    with memory, bypassing(student):
        seen = Tapped(student, read)(images).features
        for (quantizer, *_), p, v in zip(found, seen[::2], seen[1::2], strict=True):
            quantizer.range_min.zero_()
            heads = quantizer.heads is not None
            end = best_end(p.float(), v.float(), quantizer.bits, heads=heads)
            quantizer.range_max.copy_(end * quantizer.shrink)
    return len(found)


def best_end(probabilities: Tensor, values: Tensor, bits: int, *, heads: bool = False) -> Tensor:
    """The upper end of the range from 0 with the least squared error of the product.

    Args:
        probabilities: (..., N, M)
        values: (..., M, D)
        bits: of the probabilities.
        heads: find one for each index of dimension 1, (H,), instead of one for all, 0-d.
    """
    if heads:
        pairs = zip(probabilities.unbind(1), values.unbind(1), strict=True)
        return torch.stack([best_end(p, v, bits) for p, v in pairs])
    exact, largest = probabilities @ values, probabilities.amax()
    zero = torch.zeros_like(largest)
    shares = torch.linspace(1, 1 / SHARES, SHARES, dtype=torch.float32, device=values.device)
    errors = [
        (ops.fake_quantize(probabilities, zero, largest * share, bits) @ values - exact)
        .double()
        .square()
        .sum()
        for share in shares
    ]
    return largest * shares[torch.stack(errors).argmin()]
