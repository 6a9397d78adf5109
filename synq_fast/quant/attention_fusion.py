"""Attention with quantized operands and probabilities as one op, where it has that form."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from synq_fast import ops
from synq_fast.graph import called_module, shape_of
from synq_fast.graph.attention import factor_of, is_softmax_of_rows
from synq_fast.graph.nodes import called_name
from synq_fast.quant.activations import ActivationQuantizer

_PRODUCTS = frozenset({"matmul", "__matmul__"})
_RESHAPING = frozenset({"view", "reshape"})


class QuantizedAttention(nn.Module):
    """Two products and the softmax between them, with the quantizers of what is multiplied."""

    def __init__(self, quantizers: Sequence[ActivationQuantizer], factor: float | None) -> None:
        """Share the quantizers of queries, keys, values and probabilities.

        ``factor`` is what the logits are multiplied by, if anything.
        """
        super().__init__()
        self.queries, self.keys, self.values, self.probabilities = quantizers
        self.factor = factor

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The attention's output (B, H, N, D).

        Args:
            q: queries (B, H, N, D).
            k: keys across (B, H, D, M).
            v: values (B, H, M, D).
            bias: summand of the logits that broadcasts to (H, N, M).
            mask: masks (1, W, 1, N, M) of W windows, which follow each other in the batch.
        """
        quantizers = (self.queries, self.keys, self.values, self.probabilities)
        read = [x for x in (q, k, v, bias, mask) if x is not None]
        trained = torch.is_grad_enabled() and any(x.requires_grad for x in read)
        masked = mask is None or not mask.requires_grad
        if not masked or not all(one.is_grid(q, trained) for one in quantizers):
            return self._separately(q, k, v, bias, mask)
        shapes = (q.shape, k.shape, v.shape)
        pairs = [one.learned(shape) for one, shape in zip(quantizers[:3], shapes, strict=True)]
        of_q, of_k, of_v = (grid for grid, _ in pairs)
        p_scale, factor = self.probabilities.of_probabilities((*q.shape[:3], v.shape[2]))
        return ops.quantized_attention(
            q,
            k.transpose(-2, -1),
            v,
            of_q.scale,
            of_q.zero_point,
            of_k.scale,
            of_k.zero_point,
            of_v.scale,
            of_v.zero_point,
            p_scale,
            [one.bits for one in quantizers],
            alpha=1.0 if self.factor is None else self.factor,
            bias=bias,
            mask=None if mask is None else mask[0, :, 0],
            gradient_scale=[*(one for _, one in pairs), factor],
            p_grid=self.probabilities.spacing,
        )

    def _separately(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        logits = torch.matmul(self.queries(q), self.keys(k))
        if self.factor is not None:
            logits = logits * self.factor
        if bias is not None:
            logits = logits + bias
        if mask is not None:
            windows = logits.view(-1, mask.shape[1], *logits.shape[1:])
            logits = (windows + mask).view(logits.shape)
        probabilities = self.probabilities(functional.softmax(logits, dim=-1))
        return torch.matmul(probabilities, self.values(v))


@dataclass
class _Match:
    """An attention in a graph."""

    inputs: tuple[fx.Node, fx.Node, fx.Node]
    quantizers: tuple[ActivationQuantizer, ...]
    """Of queries, keys, values and probabilities."""
    factor: float | None
    bias: fx.Node | None
    mask: fx.Node | None
    absorbed: list[fx.Node]
    """What the op replaces, each node before those that it reads."""


def fuse_attentions(module: fx.GraphModule, keep: Collection[str] = ()) -> None:
    """Join every attention whose inner values nobody else reads, in place.

    Args:
        module: a quantized network; its graph is changed, what it calls is shared.
        keep: names of nodes whose values are read elsewhere, so that they must stay.
    """
    for node in list(module.graph.nodes):
        match = _match(module, node, keep)
        if match is None:
            continue
        name = f"fused_{node.name}"
        joined = QuantizedAttention(match.quantizers, match.factor)
        module.add_submodule(name, joined)
        with module.graph.inserting_before(node):
            made = module.graph.call_module(name, (*match.inputs, match.bias, match.mask))
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        kept_name = node.name
        module.graph.erase_node(node)
        made.name = kept_name
        for absorbed in match.absorbed:
            module.graph.erase_node(absorbed)


def _match(module: fx.GraphModule, node: fx.Node, keep: Collection[str]) -> _Match | None:
    """The attention whose output a node is."""
    absorbed: list[fx.Node] = []

    def inner(found: object) -> fx.Node | None:
        """A node that vanishes: read once, and by no tap."""
        if not isinstance(found, fx.Node) or len(found.users) != 1 or found.name in keep:
            return None
        absorbed.append(found)
        return found

    def quantizer_at(found: fx.Node | None) -> ActivationQuantizer | None:
        called = called_module(module, found) if found is not None else None
        return called if isinstance(called, ActivationQuantizer) else None

    operands = _operands(node)
    if operands is None:
        return None
    rounded, values = (inner(operand) for operand in operands)
    of_p, of_v = quantizer_at(rounded), quantizer_at(values)
    if rounded is None or values is None or of_p is None or of_v is None or not of_p.from_zero:
        return None
    softmax = inner(rounded.all_input_nodes[0])
    if softmax is None or not is_softmax_of_rows(module, softmax):
        return None
    logits, bias, mask, factor = inner(softmax.all_input_nodes[0]), None, None, None
    windows = _windows(logits)
    if windows is not None:
        mask, inside = windows
        # The reshaped logits, and the sum: read once like the rest.
        if logits is None or inner(logits.args[0]) is None or inner(inside) is None:
            return None
        logits = inner(inside.args[0])
    summand = _summand(logits)
    if summand is not None:
        bias, inside = summand
        logits = inner(inside)
    scaled = factor_of(logits) if logits is not None else None
    if logits is not None and scaled is not None:
        factor, logits = scaled, inner(logits.all_input_nodes[0])
    operands = _operands(logits) if logits is not None else None
    if operands is None:
        return None
    queries, keys = (inner(operand) for operand in operands)
    of_q, of_k = quantizer_at(queries), quantizer_at(keys)
    if queries is None or keys is None or of_q is None or of_k is None:
        return None
    q, k, v = (found.all_input_nodes[0] for found in (queries, keys, values))
    q_shape, k_shape, v_shape = (shape_of(found) for found in (q, k, v))
    if q_shape is None or v_shape is None or k_shape is None:
        return None
    across = torch.Size((*k_shape[:-2], k_shape[-1], k_shape[-2]))
    if across != v_shape or q_shape[:2] != across[:2] or q_shape[3] != across[3]:
        return None
    order = {found: place for place, found in enumerate(module.graph.nodes)}
    absorbed.sort(key=order.__getitem__, reverse=True)
    return _Match((q, k, v), (of_q, of_k, of_v, of_p), factor, bias, mask, absorbed)


def _operands(node: fx.Node) -> tuple[object, object] | None:
    """What a product multiplies: two stacks of matrices of images and heads."""
    if called_name(node) not in _PRODUCTS or len(node.args) != 2 or node.kwargs:
        return None
    four = all(isinstance(x, fx.Node) and len(shape_of(x) or ()) == 4 for x in node.args)
    return (node.args[0], node.args[1]) if four else None


def _sum_of(node: object) -> tuple[fx.Node, fx.Node] | None:
    """The two values that a node adds up."""
    if not isinstance(node, fx.Node) or node.kwargs or len(node.args) != 2:
        return None
    adds = node.op == "call_function" and node.target in (operator.add, torch.add)
    first, second = node.args
    if not adds or not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return None
    return first, second


def _summand(node: fx.Node | None) -> tuple[fx.Node, fx.Node] | None:
    """A summand that is the same for all images, and what it is added to."""
    operands = _sum_of(node)
    if node is None or operands is None:
        return None
    whole = shape_of(node)
    for summand, inside in (operands[::-1], operands):
        shape = shape_of(summand)
        if shape is None or whole is None or shape_of(inside) != whole or len(whole) != 4:
            continue
        if len(shape) <= 3 or (len(shape) == 4 and shape[0] == 1):
            return summand, inside
    return None


def _windows(node: fx.Node | None) -> tuple[fx.Node, fx.Node] | None:
    """The masks of windows, and the logits reshaped to (images, windows, heads, N, M)."""
    if node is None or called_name(node) not in _RESHAPING:
        return None
    operands = _sum_of(node.args[0])
    whole = shape_of(node)
    if operands is None or whole is None or len(whole) != 4:
        return None
    for mask, inside in (operands[::-1], operands):
        shape, parts = shape_of(mask), shape_of(inside)
        if shape is None or parts is None or len(shape) != 5 or len(parts) != 5:
            continue
        before = inside.args[0] if called_name(inside) in _RESHAPING else None
        same = isinstance(before, fx.Node) and shape_of(before) == whole
        if same and parts[2:] == whole[1:] and shape == (1, parts[1], 1, *parts[3:]):
            return mask, inside
    return None
