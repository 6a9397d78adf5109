"""From an ``nn.Module`` to a graph of call sites, the form that placement and taps work on."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx, nn

from synq_fast.errors import TraceError

_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    torch.relu_: torch.relu,
    nn.functional.relu_: nn.functional.relu,
}
_OUT_OF_PLACE_METHODS = {"relu_": "relu", "add_": "add", "mul_": "mul"}


class _Tracer(fx.Tracer):
    def __init__(self, leaves: Iterable[str]) -> None:
        super().__init__()
        self.leaves = frozenset(leaves)
        self.failed_in: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        named = {module_qualified_name, type(m).__name__}
        return bool(named & self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            # The innermost module is the first to see the exception.
            self.failed_in = self.failed_in or f"{self.path_of_module(m)} ({type(m).__name__})"
            raise


def trace(module: nn.Module, leaves: Iterable[str] = ()) -> fx.GraphModule:
    """Trace a module in evaluation mode into a graph without in-place call sites.

    In-place additions and activations become out-of-place ones, so that a tapped tensor keeps its
    value. Submodules and parameters are shared with ``module``, not copied.

    Args:
        module: the model; every forward argument after the images needs a default.
        leaves: qualified names or class names of submodules that must stay one opaque call.

    Raises:
        TraceError: the forward depends on tensor values; names the module and the way out.
    """
    tracer = _Tracer(leaves)
    try:
        graph = tracer.trace(module)
    except Exception as error:
        where = tracer.failed_in or f"the model's own forward ({type(module).__name__})"
        raise TraceError(
            f"cannot trace {where}: {error}. Rewrite its forward without Python control flow on "
            f"tensor values, or keep it whole with "
            f'quantization.leaf_modules = ["<name or class>"] (a leaf stays in floating point)'
        ) from error
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = _OUT_OF_PLACE.get(node.target, node.target)
        elif node.op == "call_method":
            node.target = _OUT_OF_PLACE_METHODS.get(node.target, node.target)
        if node.kwargs.get("inplace"):
            node.update_kwarg("inplace", False)
        if node.op == "call_module":
            called: Any = module.get_submodule(node.target)
            if getattr(called, "inplace", False) is True:
                called.inplace = False
    return fx.GraphModule(module, graph, type(module).__name__)


def called_module(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The submodule that a node calls, or None where it calls something else."""
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
