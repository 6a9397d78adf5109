"""Attention in the open form, and where a traced network has it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from synq_fast.graph.nodes import called_module, called_name, constants, shape_of

_WINDOWED = "torchvision.models.swin_transformer"
_PRODUCTS = frozenset({"matmul", "bmm", "einsum", "__matmul__"})
_MOVING = frozenset({"dropout", "contiguous", "reshape", "view", "to", "type_as", "clone"})


@dataclass(frozen=True)
class Attention:
    """One attention of a traced network: names of its nodes, the same in teacher and student."""

    logits: str
    """The product of queries and keys (..., H, N, M), before scale, bias and mask."""
    probabilities: str
    """Their softmax over the keys, of the same shape."""
    output: str
    """The product of probabilities and values (..., H, N, D)."""


def opened(target: Any) -> Callable[..., Any] | None:
    """What to trace instead of a function that hides an attention; None for other functions."""
    if getattr(target, "__module__", None) == _WINDOWED:
        unwrapped: Callable[..., Any] = target
        return unwrapped
    return _OPEN_FORMS.get(target)


def find_attentions(graph_module: fx.GraphModule) -> tuple[Attention, ...]:
    """Every softmax of a product of two activations that multiplies a third, in order."""
    found = []
    made = dict.fromkeys(products(graph_module))
    fixed = constants(graph_module.graph)

    def behind(node: fx.Node, through: Callable[[fx.GraphModule, fx.Node], bool]) -> fx.Node:
        while through(graph_module, node):
            operands = [o for o in node.all_input_nodes if o not in fixed]
            if not operands:
                break
            node = operands[0]
        return node

    for node in made:
        softmax = behind(node.all_input_nodes[0], _is_moving)
        if is_softmax(graph_module, softmax):
            logits = behind(softmax.all_input_nodes[0], _is_scaling)
            if logits in made:
                found.append(Attention(logits.name, softmax.name, node.name))
    return tuple(found)


def products(graph_module: fx.GraphModule) -> list[fx.Node]:
    """The nodes that multiply two stacks of matrices, both of which follow from the images."""
    fixed = constants(graph_module.graph)
    return [
        node
        for node in graph_module.graph.nodes
        if called_name(node) in _PRODUCTS
        and len(node.all_input_nodes) == 2
        and all(len(shape_of(o) or ()) >= 3 and o not in fixed for o in node.all_input_nodes)
    ]


def stacking(product: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """How a product's operands are permuted to (B, H, N, C) and (B, H, C, M).

    None where they are no stacks of the matrices of images and heads.
    """
    if called_name(product) == "einsum":
        equation = product.args[0]
        return _einsum_stacking(equation) if isinstance(equation, str) else None
    sizes = {len(shape_of(operand) or ()) for operand in product.all_input_nodes}
    return ((0, 1, 2, 3), (0, 1, 2, 3)) if sizes == {4} else None


def _einsum_stacking(equation: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    terms = equation.replace(" ", "").replace("->", ",").split(",")
    if len(terms) != 3 or any(len(term) != 4 or not term.isalpha() for term in terms):
        return None
    first, second, result = terms
    shared = [c for c in result if c in first and c in second]
    rows = [c for c in first if c not in second]
    columns = [c for c in second if c not in first]
    inner = [c for c in first if c in second and c not in result]
    if (len(shared), len(rows), len(columns), len(inner)) != (2, 1, 1, 1):
        return None
    return (
        tuple(first.index(c) for c in (*shared, *rows, *inner)),
        tuple(second.index(c) for c in (*shared, *inner, *columns)),
    )


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """``torch.nn.functional.scaled_dot_product_attention`` in evaluation, product by product.

    Raises:
        ValueError: grouped queries, which have no quantized form here.
    """
    if enable_gqa:
        raise ValueError("attention with grouped queries (enable_gqa) cannot be opened")
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    logits = torch.matmul(query, key.transpose(-2, -1)) * factor
    if is_causal:
        rows, columns = query.shape[-2], key.shape[-2]
        attn_mask = torch.ones(rows, columns, dtype=torch.bool).tril()
    return torch.matmul(functional.softmax(_masked(logits, attn_mask), dim=-1), value)


def multi_head_attention_forward(
    query: Any,
    key: Any,
    value: Any,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """``torch.nn.functional.multi_head_attention_forward`` in evaluation, product by product.

    Args are those of the function; queries (N, B, C), keys and values (M, B, C).

    Raises:
        ValueError: what vision networks do not use and has no quantized form here.
    """
    refused = {
        "bias_k": bias_k is not None,
        "bias_v": bias_v is not None,
        "add_zero_attn": add_zero_attn,
        "key_padding_mask": key_padding_mask is not None,
        "static keys": static_k is not None or static_v is not None,
        "unbatched input": len(query.shape) != 3,
        "a mask for each image": attn_mask is not None and len(attn_mask.shape) != 2,
    }
    if any(refused.values()):
        what = ", ".join(name for name, given in refused.items() if given)
        raise ValueError(f"attention with {what} cannot be opened")
    if use_separate_proj_weight:
        biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
        parts = [
            functional.linear(x, w, b)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        ]
    elif query is key and key is value:
        parts = list(functional.linear(query, in_proj_weight, in_proj_bias).chunk(3, dim=-1))
    else:
        biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        parts = [
            functional.linear(x, w, b)
            for x, w, b in zip((query, key, value), in_proj_weight.chunk(3), biases, strict=True)
        ]
    size = embed_dim_to_check // num_heads
    q, k, v = (x.reshape(x.shape[0], -1, num_heads, size).permute(1, 2, 0, 3) for x in parts)
    logits = torch.matmul(q, k.transpose(-2, -1)) * (1 / math.sqrt(size))
    if is_causal and attn_mask is None:
        attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
    # Here true means masked, in scaled_dot_product_attention it means kept.
    inverted = attn_mask is not None and _dtype(attn_mask) == torch.bool
    mask = ~attn_mask if inverted else attn_mask
    probabilities = functional.softmax(_masked(logits, mask), dim=-1)
    y = torch.matmul(probabilities, v).permute(2, 0, 1, 3).flatten(2)
    weights_out = None
    if need_weights:
        weights_out = probabilities.mean(1) if average_attn_weights else probabilities
    return functional.linear(y, out_proj_weight, out_proj_bias), weights_out


_OPEN_FORMS: dict[object, Callable[..., Any]] = {
    functional.scaled_dot_product_attention: scaled_dot_product_attention,
    functional.multi_head_attention_forward: multi_head_attention_forward,
}


def _masked(logits: Any, mask: Any) -> Any:
    if mask is None:
        return logits
    if _dtype(mask) == torch.bool:
        return logits.masked_fill(~mask, -math.inf)
    return logits + mask


def _dtype(value: Any) -> torch.dtype:
    dtype: torch.dtype = value.dtype
    return dtype


def is_softmax(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node gives probabilities."""
    if isinstance(called_module(graph_module, node), nn.Softmax):
        return True
    return called_name(node) == "softmax"


def is_softmax_of_rows(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a softmax is over the last dimension, in the type of what it reads."""
    called = called_module(graph_module, node)
    if isinstance(called, nn.Softmax):
        dim: Any = called.dim
    else:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    shape = shape_of(node)
    last = shape is not None and dim in (-1, len(shape) - 1)
    return is_softmax(graph_module, node) and last and node.kwargs.get("dtype") is None


def factor_of(node: fx.Node) -> float | None:
    """What a node multiplies its one operand by; None where it does something else."""
    numbers = [a for a in node.args if isinstance(a, int | float)]
    multiplies = node.op == "call_function" and node.target in (operator.mul, torch.mul)
    if not multiplies or len(node.args) != 2 or len(numbers) != 1:
        return None
    return float(numbers[0])


def _is_moving(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    module = called_module(graph_module, node)
    return isinstance(module, nn.Dropout | nn.Identity) or called_name(node) in _MOVING


def _is_scaling(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node scales, shifts or masks logits, or changes nothing but their shape."""
    scaling = {"mul", "truediv", "div", "add", "masked_fill", "where", "sub"}
    return _is_moving(graph_module, node) or called_name(node) in scaling | _MOVING
