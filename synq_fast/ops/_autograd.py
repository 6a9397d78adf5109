"""Autograd in Python from an op's rule: for Triton, and for all kernels in a build without C++."""

import ast
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from synq_fast.ops._rule import Formula, Rule, is_call_of


def dtype_of(x: torch.Tensor) -> torch.dtype:
    """Returns the type of a tensor's elements."""
    return x.dtype


def is_channels_last(x: torch.Tensor) -> bool:
    """Returns whether the gradient of these images is better written channels_last."""
    return x.ndim == 4 and bool(x.stride(1) == 1)


def scale_images(x: torch.Tensor, factors: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns `x`, `(B, N, C)`, times one factor per image, in another type."""
    return (x * factors[:, None, None]).to(dtype)


def strides_of(x: torch.Tensor) -> tuple[int, ...]:
    """Returns how a tensor lies in memory."""
    return x.stride()


_HELPERS: dict[str, Callable[..., Any]] = {
    "dtype_of": dtype_of,
    "is_channels_last": is_channels_last,
    "scale_images": scale_images,
    "strides_of": strides_of,
}


def once_only(name: str) -> NotImplementedError:
    """Returns the error of a second derivative; csrc/ops/autograd.h says the same.

    NotImplementedError is what torch itself raises where a derivative is missing.
    """
    return NotImplementedError(f"{name} can be differentiated once")


class _Formula:
    """One formula as two functions: what it saves of a call, and the gradients from that."""

    def __init__(self, rule: Rule, formula: Formula, suffix: str) -> None:
        places = {argument.name: i for i, argument in enumerate(rule.arguments)}
        self.of = [places[name] for name in formula.of]
        self.test = None if formula.test is None else _function(_names(rule), formula.test)
        self.has_otherwise = formula.otherwise is not None
        self.gradients = rule.used_gradients(formula)
        saved = rule.saved(formula)
        self.save = _function(_names(rule), ast.Tuple(list(saved.values()), ast.Load()))
        value = _Late(places).visit(copy.deepcopy(formula.value))
        value = _Stored(list(saved)).visit(value)
        names = ["stored", "needs", *rule.gradients()]
        self.value = _function(names, value, _ops_in(value, suffix))
        otherwise = formula.otherwise or ast.Constant(None)
        self.otherwise = _function(list(rule.gradients()), otherwise)


class _Stored(ast.NodeTransformer):
    """Replaces what was saved by its place among the saved values."""

    def __init__(self, sources: list[str]) -> None:
        self.sources = sources

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and (source := ast.unparse(node)) in self.sources:
            place = ast.Constant(self.sources.index(source))
            return ast.Subscript(ast.Name("stored", ast.Load()), place, ast.Load())
        return self.generic_visit(node)


class _Late(ast.NodeTransformer):
    """Replaces `needs(x)` by the element of `ctx.needs_input_grad`."""

    def __init__(self, places: dict[str, int]) -> None:
        self.places = places

    def visit_Call(self, node: ast.Call) -> Any:
        if is_call_of(node, "needs") and isinstance(node.args[0], ast.Name):
            place = ast.Constant(self.places[node.args[0].id])
            return ast.Subscript(ast.Name("needs", ast.Load()), place, ast.Load())
        return self.generic_visit(node)


def _names(rule: Rule) -> list[str]:
    return [*(argument.name for argument in rule.arguments), *rule.results]


def _ops_in(expression: ast.expr, suffix: str) -> dict[str, Any]:
    found = {}
    for node in ast.walk(expression):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name not in _HELPERS and name != "needs":
                found[name] = getattr(getattr(torch.ops.synq_fast, name), suffix)
    return found


def _function(
    names: list[str], value: ast.expr, functions: dict[str, Any] | None = None
) -> Callable[..., Any]:
    text = f"lambda {', '.join(names)}: {ast.unparse(ast.fix_missing_locations(value))}"
    function: Callable[..., Any] = eval(text, {**_HELPERS, **(functions or {})})
    return function


def make_autograd(rule: Rule, suffix: str) -> tuple[Callable[..., None], Callable[..., Any]]:
    """Returns `(setup_context, backward)` for one overload of an op, whose ops are registered."""
    formulas = [_Formula(rule, formula, suffix) for formula in rule.formulas]
    constants = rule.constants()
    listed = [i for i, argument in enumerate(rule.arguments) if argument.type == "Tensor[]"]

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if not formulas:
            return
        results = output if isinstance(output, tuple) else (output,)
        ctx.set_materialize_grads(False)
        ctx.lengths = {i: len(inputs[i]) for i in listed}
        # Every formula with its values; a tensor or a list of them stands as its place in `kept`.
        kept: list[Any] = []
        ctx.stored = []
        absent = False
        for formula in formulas:
            holds = formula.test is None or formula.test(*inputs, *results)
            absent |= not (holds or formula.has_otherwise)
            values = formula.save(*inputs, *results) if holds else ()
            ctx.stored.append(tuple(_keep(value, kept) for value in values) if holds else None)
        ctx.save_for_backward(*kept)
        without = range(len(results)) if absent else constants
        ctx.mark_non_differentiable(*(results[i] for i in without))

    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        if not formulas or (rule.once and torch.is_grad_enabled()):
            raise once_only(rule.once)
        result: list[Any] = [None] * len(rule.arguments)
        for place, length in ctx.lengths.items():
            result[place] = [None] * length
        saved = ctx.saved_tensors
        needs = ctx.needs_input_grad
        for formula, stored in zip(formulas, ctx.stored, strict=True):
            if all(gradients[i] is None for i in formula.gradients):
                continue
            if len(formulas) > 1 and not any(needs[i] for i in formula.of):
                continue
            if stored is None:
                value = formula.otherwise(*gradients)
            else:
                values = [_restore(part, saved) for part in stored]
                value = formula.value(values, needs, *gradients)
            if len(formula.of) == 1:
                result[formula.of[0]] = value
                continue
            for place, part in zip(formula.of, value, strict=True):
                result[place] = part if needs[place] else None
        return tuple(result) if len(result) > 1 else result[0]

    return setup, backward


class _Place(int):
    """Where a saved tensor stands among the saved ones."""


def _keep(value: Any, kept: list[Any]) -> Any:
    if isinstance(value, torch.Tensor):
        kept.append(value)
        return _Place(len(kept) - 1)
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
        kept.extend(value)
        return [_Place(len(kept) - len(value) + i) for i in range(len(value))]
    return value


def _restore(value: Any, saved: tuple[torch.Tensor, ...]) -> Any:
    if isinstance(value, _Place):
        return saved[value]
    if isinstance(value, list) and value and isinstance(value[0], _Place):
        return [saved[place] for place in value]
    return value


def make_recorded(rule: Rule, suffix: str) -> Callable[..., Any]:
    """Returns the autograd kernel of an op that another one stands in for where it must record."""
    assert rule.recorded is not None and isinstance(rule.recorded.func, ast.Name)
    op = getattr(getattr(torch.ops.synq_fast, rule.name), suffix)
    places = {argument.name: i for i, argument in enumerate(rule.arguments)}
    arguments = ast.Tuple(copy.deepcopy(rule.recorded.args), ast.Load())
    names = ["needs", *places]
    convert = _function(names, _Late(places).visit(arguments))
    stand_in = _ops_in(rule.recorded, suffix)[rule.recorded.func.id]
    tensors = [i for i, argument in enumerate(rule.arguments) if argument.is_tensor]
    count = len(rule.results)

    def call(keyset: Any, *given: Any) -> Any:
        enabled = torch.is_grad_enabled()
        needs = {i: enabled and given[i].requires_grad for i in tensors}
        if any(needs.values()):
            results = stand_in(*convert(needs, *given))[:count]
            return results[0] if count == 1 else results
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *given)

    return call


@contextmanager
def recording_again() -> Iterator[None]:
    """Lets a reference below autograd differentiate something for itself."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in (torch._C.DispatchKey.AutogradCPU, torch._C.DispatchKey.AutogradCUDA):
        excluded = excluded.remove(key)
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded):
        yield
