"""Ranges of queries, keys and values, by the error of what attention makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from synq_fast.finetune.linear_inputs import best_range, root, sampled
from synq_fast.graph import called_module
from synq_fast.graph.attention import Attention, stacking
from synq_fast.graph.taps import Tapped
from synq_fast.quant.activations import ActivationQuantizer, bypassing
from synq_fast.runtime.out_of_memory import memory_errors

IMAGES = 4
"""So many images' values and probabilities are looked at, whose product is made at every range."""


@torch.no_grad()
def fit_attention_operands(
    student: fx.GraphModule, attentions: Sequence[Attention], images: Tensor
) -> int:
    """Give queries, keys and values the ranges with which their products err least.

    Queries and keys by the error of the logits, with the keys and queries of all images; values by
    that of the output. All are those of the float network, so that no order matters. Attention
    that multiplies no stacks of images and heads keeps the ranges that it has.

    Args:
        student: quantized network with ranges, which are changed in place.
        attentions: of its graph.
        images: (B, C, H, W), all at once.

    Returns:
        How many operands there are.

    Raises:
        OutOfMemoryError: the images do not fit.
    """
    nodes = {node.name: node for node in student.graph.nodes}
    read: list[str] = []
    products = [(nodes[a.logits], nodes[a.output]) for a in attentions]
    products = [pair for pair in products if all(map(stacking, pair))]
    for logits, output in products:
        operands = [*logits.all_input_nodes, *output.all_input_nodes]
        read += [_source(student, node).name for node in operands]
    memory = memory_errors(
        "the ranges of attention's operands", "lower quantization.calibration_batch_size"
    )
    fitted = 0
    with memory, bypassing(student):
        seen = iter(Tapped(student, read)(images).features)
        for logits, output in products:
            orders = (order for node in (logits, output) for order in stacking(node) or ())
            q, k, p, v = (next(seen).float().permute(order) for order in orders)
            queries, keys = _rows(q), _rows(k.mT)
            of_q, of_k = logits.all_input_nodes
            some = slice(IMAGES)
            for node, values, factors, before in (
                (of_q, sampled(queries), root(keys).mT, False),
                (of_k, sampled(keys), root(queries).mT, False),
                (output.all_input_nodes[1], v[some].transpose(0, 1), p[some].transpose(0, 1), True),
            ):
                quantizer = called_module(student, node)
                if isinstance(quantizer, ActivationQuantizer):
                    quantizer.take(*_fitted(quantizer, values, factors, before))
                    fitted += 1
    return fitted


def _source(student: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The value itself, before its quantizer."""
    quantized = isinstance(called_module(student, node), ActivationQuantizer)
    return node.all_input_nodes[0] if quantized else node


def _rows(x: Tensor) -> Tensor:
    """Vectors (H, B * N, C) of each head, of (B, H, N, C)."""
    return x.transpose(0, 1).flatten(1, 2)


def _fitted(
    quantizer: ActivationQuantizer, values: Tensor, factors: Tensor, before: bool
) -> tuple[Tensor, Tensor]:
    """The ends of heads (H, ...), or of all, by the error of a product with factors (H, ...)."""

    def best(values: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        def product(error: Tensor) -> Tensor:
            return factors @ error if before else error @ factors

        return best_range(values, product, quantizer)

    if quantizer.heads is None:
        return best(values, factors)
    low, high = zip(*map(best, values, factors), strict=True)
    return torch.stack(low), torch.stack(high)
