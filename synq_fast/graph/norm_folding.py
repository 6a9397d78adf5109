"""Scales and shifts of single channels, moved from LayerNorms to the layers that read them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from synq_fast.errors import ModelError
from synq_fast.graph.nodes import (
    attribute,
    called_module,
    called_name,
    copied,
    is_foreign,
    is_shape,
    own_modules,
    parameter_like,
    shape_of,
)

_FOLD = "fold"
_ORDERED = frozenset({"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"})
_IDLE = (nn.Identity, nn.Dropout)
# What they read says the type and the device, no value.
_BLANK = frozenset({"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like"})


@dataclass(frozen=True)
class FoldableNorm:
    """A LayerNorm that linear layers alone read."""

    call: str
    """Name of the node that calls it, the same in teacher and student."""
    norm: str
    """Qualified name of the module."""
    readers: tuple[str, ...]
    """Qualified names of the layers that read it."""


def foldable_norms(graph_module: fx.GraphModule) -> tuple[list[FoldableNorm], dict[str, str]]:
    """The LayerNorms whose channels may be scaled and shifted, and why the others may not.

    What reads one is followed through everything that moves, selects or averages tokens and keeps
    channels apart.

    Args:
        graph_module: a traced float network.

    Returns:
        Those that may, in order, and a reason for each other by the name of its call.
    """
    calls = Counter(
        str(n.target) for n in graph_module.graph.nodes if n.op in ("call_module", "get_attr")
    )
    owners = Counter(id(p) for _, p in graph_module.named_parameters(remove_duplicate=False))
    found, others = [], {}
    for node in graph_module.graph.nodes:
        if _is_norm(graph_module, node):
            try:
                readers = _readers(graph_module, node)
                _check_own(graph_module, node, readers, calls, owners)
            except ModelError as error:
                others[node.name] = str(error)
            else:
                found.append(FoldableNorm(node.name, _name(graph_module, node), readers))
    return found, others


def with_foldable_norms(graph_module: fx.GraphModule, *, all_of_them: bool) -> fx.GraphModule:
    """A copy whose foldable LayerNorms and their readers hold all that a fold changes.

    The norms are modules with factors, summands and a buffer ``fold`` (2, C): what the channels
    were divided by, and what was taken off then. Their readers have a bias. Nothing is scaled yet.

    Args:
        graph_module: a traced float network; stays as it is.
        all_of_them: refuse a network that has another LayerNorm.

    Raises:
        ModelError: there is a LayerNorm that cannot be folded, or none that can; names it.
    """
    result = own_modules(copied(graph_module))
    result.meta.update(graph_module.meta)
    found, others = foldable_norms(result)
    if all_of_them and (others or not found):
        named = "; ".join(f"{name}: {reason}" for name, reason in others.items())
        raise ModelError(
            f"not every LayerNorm can be folded into what reads it ({named or 'there is none'}); "
            f'set quantization.fold_norms = "never" or "auto"'
        )
    nodes = {node.name: node for node in result.graph.nodes}
    for each in found:
        _make_module(result, nodes[each.call], each.norm)
        for name in each.readers:
            layer = result.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            if layer._parameters["bias"] is None:
                layer.bias = parameter_like(
                    layer.weight.new_zeros(layer.out_features), layer.weight
                )
    for node in reversed(result.graph.nodes):
        if node.op == "get_attr" and not node.users:
            result.graph.erase_node(node)
    result.graph.lint()
    result.recompile()
    result.delete_all_unused_submodules()
    result.train(graph_module.training)
    return result


def has_foldable_norms(graph_module: fx.GraphModule) -> bool:
    """Whether a network is a result of ``with_foldable_norms`` that has one."""
    return any(_FOLD in module._buffers for module in graph_module.modules())


@torch.no_grad()
def fold(graph_module: fx.GraphModule, norm: FoldableNorm, scale: Tensor, shift: Tensor) -> None:
    """Let a LayerNorm give ``y / scale - shift`` instead of y, and its readers read that.

    The outputs of the readers stay: weights become ``W diag(scale)``, biases
    ``b + W diag(scale) shift`` (RepQ-ViT, arXiv 2212.08254).

    Args:
        graph_module: a result of ``with_foldable_norms``, or a quantized copy; changed in place.
        norm: which.
        scale: (C,), above 0.
        shift: (C,).
    """
    module = graph_module.get_submodule(norm.norm)
    assert isinstance(module, nn.LayerNorm)
    kept = module.get_buffer(_FOLD)
    scale, shift = (v.to(kept).double() for v in (scale, shift))
    before = kept.double()
    kept.copy_(torch.stack([before[0] * scale, before[1] / scale + shift]))
    module.weight = parameter_like(module.weight.double() / scale, module.weight)
    module.bias = parameter_like(module.bias.double() / scale - shift, module.bias)
    for name in norm.readers:
        layer = graph_module.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        weight = layer.weight.double() * scale
        layer.bias = parameter_like(layer.bias.double() + weight @ shift, layer.bias)
        layer.weight = parameter_like(weight, layer.weight)


def folded_like(teacher: fx.GraphModule, student: nn.Module) -> fx.GraphModule:
    """The float network with the folds of its quantized copy, so that their values compare.

    Args:
        teacher: what the student was made from; stays as it is, and is the result where the
            student has no fold.
        student: the quantized network.
    """
    held = {n: m.get_buffer(_FOLD) for n, m in student.named_modules() if _FOLD in m._buffers}
    folded = {n: f for n, f in held.items() if (f[0] != 1).any() or (f[1] != 0).any()}
    if not folded:
        return teacher
    result = own_modules(copied(teacher))
    result.meta.update(teacher.meta)
    result.train(teacher.training)
    for each in foldable_norms(result)[0]:
        if each.norm in folded:
            norm = result.get_submodule(each.norm)
            # Own, as the parameters are that are replaced.
            norm.register_buffer(_FOLD, norm.get_buffer(_FOLD).clone())
            fold(result, each, *folded[each.norm].double())
    return result


def _is_norm(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    named = called_name(node) in ("layer_norm", "rms_norm") and not is_foreign(node)
    return named or isinstance(called_module(graph_module, node), nn.LayerNorm | nn.RMSNorm)


def _given(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call of ``layer_norm`` after its input."""
    names = ("normalized_shape", "weight", "bias", "eps")
    return {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}


def _name(graph_module: fx.GraphModule, node: fx.Node) -> str:
    """Of the module that a norm is or becomes."""
    if node.op == "call_module":
        return str(node.target)
    weight = _given(node).get("weight")
    owner = "" if weight is None else str(weight.target).rpartition(".")[0]
    is_norm = owner and set(dict(graph_module.get_submodule(owner).named_parameters())) <= {
        "weight",
        "bias",
    }
    return owner if is_norm else f"{node.name}_module"


def _make_module(graph_module: fx.GraphModule, node: fx.Node, name: str) -> None:
    """Make a norm a module of its own with everything that a fold changes."""
    called = called_module(graph_module, node)
    weight: Tensor | None
    bias: Tensor | None
    if isinstance(called, nn.LayerNorm):
        weight, bias, eps = called.weight, called.bias, called.eps
    else:
        given = _given(node)
        weight, bias = (
            None if given.get(n) is None else attribute(graph_module, str(given[n].target))
            for n in ("weight", "bias")
        )
        eps = given.get("eps", 1e-5)
    like = next(graph_module.parameters())
    shape = shape_of(node)
    assert shape is not None
    made = nn.LayerNorm(shape[-1], eps, device=like.device, dtype=like.dtype)
    made.weight = parameter_like(made.weight if weight is None else weight, made.weight)
    made.bias = parameter_like(made.bias if bias is None else bias, made.bias)
    neutral = torch.stack([torch.ones_like(made.weight), torch.zeros_like(made.weight)])
    made.register_buffer(_FOLD, neutral.detach())
    made.train(graph_module.training)
    graph_module.add_submodule(name, made)
    node.op, node.target = "call_module", name
    node.args, node.kwargs = (node.all_input_nodes[0],), {}


def _readers(graph_module: fx.GraphModule, norm: fx.Node) -> tuple[str, ...]:
    """Names of the linear layers behind a norm, if nothing else is.

    Raises:
        ModelError: something else is; says what.
    """
    shape, called = shape_of(norm), called_module(graph_module, norm)
    if isinstance(called, nn.RMSNorm) or called_name(norm) == "rms_norm":
        raise ModelError("an RMSNorm has no summand that could take up a shift")
    normalized = called.normalized_shape if isinstance(called, nn.LayerNorm) else None
    if normalized is None:
        normalized = _given(norm)["normalized_shape"]
    if type(called) not in (nn.LayerNorm, type(None)):
        raise ModelError(f"{type(called).__name__} has a forward of its own")
    if shape is None or tuple(normalized) != (shape[-1],):
        raise ModelError("it normalises more than the last dimension")
    if any(n is not norm.all_input_nodes[0] and n.op != "get_attr" for n in norm.all_input_nodes):
        raise ModelError("its parameters are computed")
    found: dict[str, None] = {}
    waiting = [(norm, user, len(shape) - 1) for user in norm.users]
    while waiting:
        source, node, axis = waiting.pop()
        if is_shape(node) or called_name(node) in ("size", "dim", *_BLANK):
            continue
        layer, held = called_module(graph_module, node), shape_of(source)
        assert held is not None
        if type(layer) is nn.Linear and axis == len(held) - 1:
            found[str(node.target)] = None
            continue
        after = _axis_after(graph_module, node, source, axis)
        if after is None:
            raise ModelError(f"{node.name} reads it, and is no linear layer")
        waiting.extend((node, user, after) for user in node.users)
    if not found:
        raise ModelError("no linear layer reads it")
    return tuple(found)


def _check_own(
    graph_module: fx.GraphModule,
    norm: fx.Node,
    readers: Collection[str],
    calls: Counter[str],
    owners: Counter[int],
) -> None:
    """Refuse parameters that something else has too, which would not be scaled along."""
    if norm.op != "call_module":
        for node in norm.all_input_nodes:
            held = attribute(graph_module, str(node.target)) if node.op == "get_attr" else None
            again = len(node.users) > 1 or calls[str(node.target)] > 1 or owners[id(held)] > 1
            if held is not None and again:
                raise ModelError(f"{node.target} is used several times")
    modules = [str(norm.target)] if norm.op == "call_module" else []
    for name in (*modules, *readers):
        own = dict(graph_module.get_submodule(name).named_parameters())
        if calls[name] > 1:
            raise ModelError(f"{name} is called several times")
        if any(owners[id(p)] > 1 or calls[f"{name}.{n}"] for n, p in own.items()):
            raise ModelError(f"{name} shares its parameters with another module")


def _axis_after(
    graph_module: fx.GraphModule, node: fx.Node, source: fx.Node, axis: int
) -> int | None:
    """Which dimension of a node's value the channels of one it reads are; None: they are mixed.

    Sums with weights of 1 in all pass, as shifts do through them.
    """
    before, after = shape_of(source), shape_of(node)
    called, name = called_module(graph_module, node), called_name(node)
    tensors = [n for n in node.all_input_nodes if shape_of(n) is not None]
    if before is None or after is None or tensors != [source] or is_foreign(node):
        return None
    if type(called) in _IDLE or name == "contiguous":
        return axis
    if isinstance(called, nn.AdaptiveAvgPool2d) or name == "adaptive_avg_pool2d":
        return axis if (axis, len(before)) == (1, 4) else None
    if type(called) is nn.Flatten or name in _ORDERED:
        if any(isinstance(value, torch.dtype) for value in (*node.args, *node.kwargs.values())):
            return None
        inner, channels = math.prod(before[axis + 1 :]), before[axis]
        # The same place in memory order is the same channel.
        places = (i for i in range(len(after)) if math.prod(after[i + 1 :]) == inner)
        return next((i for i in places if after[i] == channels), None)
    moved = _MOVES.get(name)
    return None if moved is None else moved(node, axis, len(before))


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.kwargs.get(name, node.args[place] if len(node.args) > place else None)


def _dimensions(value: Any, count: int) -> list[int]:
    """Dimensions that an argument names, counted from the first."""
    values = value if isinstance(value, tuple | list) else [value]
    return [v % count for v in values if isinstance(v, int)]


def _permuted(node: fx.Node, axis: int, count: int) -> int | None:
    given = _argument(node, 1, "dims")
    dims = _dimensions(node.args[1:] if isinstance(given, int) else given, count)
    return dims.index(axis) if axis in dims else None


def _transposed(node: fx.Node, axis: int, count: int) -> int | None:
    pair = _dimensions([_argument(node, 1, "dim0"), _argument(node, 2, "dim1")], count)
    return pair[1 - pair.index(axis)] if axis in pair else axis


def _rolled(node: fx.Node, axis: int, count: int) -> int | None:
    dims = _dimensions(_argument(node, 2, "dims"), count)
    return axis if dims and axis not in dims else None


def _padded(node: fx.Node, axis: int, count: int) -> int | None:
    """Only by nothing: what is padded would have to be shifted too."""
    given = _argument(node, 1, "pad")
    return axis if isinstance(given, tuple | list) and not any(v != 0 for v in given) else None


def _averaged(node: fx.Node, axis: int, count: int) -> int | None:
    dims = _dimensions(_argument(node, 1, "dim"), count)
    if not dims or axis in dims:
        return None
    return axis if _argument(node, 2, "keepdim") else axis - sum(d < axis for d in dims)


def _selected(node: fx.Node, axis: int, count: int) -> int | None:
    (dim,) = _dimensions(_argument(node, 1, "dim"), count) or (axis,)
    return None if dim == axis else axis - (dim < axis)


def _indexed(node: fx.Node, axis: int, count: int) -> int | None:
    """By whole numbers and slices of other dimensions than the channels'."""
    index = node.args[1] if isinstance(node.args[1], tuple | list) else (node.args[1],)
    if not all(isinstance(i, int | slice) or i is ... for i in index):
        return None
    named = [i for i in index if i is not ...]
    rest = [slice(None)] * (count - len(named))
    at = list(index).index(...) if ... in index else len(index)
    whole = [*index[:at], *rest, *index[at + 1 :]]
    if whole[axis] != slice(None):
        return None
    return axis - sum(isinstance(i, int) for i in whole[:axis])


_MOVES = {
    "permute": _permuted,
    "transpose": _transposed,
    "roll": _rolled,
    "pad": _padded,
    "mean": _averaged,
    "select": _selected,
    "getitem": _indexed,
}
