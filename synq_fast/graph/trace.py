"""From an ``nn.Module`` to a graph of call sites, the form that everything else works on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, fx, nn

from synq_fast.errors import TraceError
from synq_fast.graph.canonical import plain_layers, without_gaps
from synq_fast.graph.nodes import attribute, is_foreign, note_shape
from synq_fast.graph.tracer import ConcreteTracer
from synq_fast.graph.writes import layout_decides, without_writes
from synq_fast.runtime.out_of_memory import pass_on_memory_errors


def trace(module: nn.Module, example: Tensor, leaves: Iterable[str] = ()) -> fx.GraphModule:
    """Trace a module in evaluation mode into a graph of plain layers without in-place operations.

    Arguments after the images keep their defaults, and what only the image size decides is decided
    now. An overwritten tensor keeps its value, and those who read it later read the new one.
    Convolutions, linear layers and evaluation BatchNorms that a module spells out as functions
    become plain layers. Parameters and buffers are shared with ``module``; it stays as it is.

    Args:
        module: the model; every forward argument after the images needs a default.
        example: images (B, C, H, W) of the model's input size; values do not matter.
        leaves: qualified names or class names of submodules that must stay one opaque call.

    Raises:
        TraceError: the forward depends on tensor values, or changes the model; names the module
            and the way out.
    """
    leaves, original = tuple(leaves), module
    try:
        module, tracer, graph = _traced(original, example, leaves, real=False)
        real = layout_decides(graph, module, tracer.writes, tracer.values)
    except TraceError:
        # Some operations cannot work on shapes alone.
        real = True
    if real:
        module, tracer, graph = _traced(original, example, leaves, real=True)
    replaced = without_writes(graph, module, tracer.writes, tracer.values, tracer.mode)
    for node in graph.nodes:
        if node in tracer.values:
            note_shape(node, tracer.values[node][0])
        if not is_foreign(node):
            # torch.fx marks what a function gave that was opened, and would wrap torch's own.
            node.meta.pop("is_wrapped", None)
    layers = plain_layers(graph, module)
    without_gaps(graph, module, layers)
    # A graph module names its tracer when it is pickled; ours cannot be made without an example.
    graph._tracer_cls = fx.Tracer
    targets = {n.target for n in graph.nodes if n.op in ("call_module", "get_attr")}
    called = {str(name): attribute(module, str(name)) for name in targets - layers.keys()}
    copies = {name: replaced[name] for name in replaced.keys() & called.keys()}
    holder = fx.GraphModule({**called, **copies, **layers}, graph)
    # From a module rather than a dictionary, what it holds comes in the order of execution.
    result = fx.GraphModule(holder, graph, type(module).__name__)
    result.train(module.training)
    return result


def _traced(
    module: nn.Module, example: Tensor, leaves: tuple[str, ...], *, real: bool
) -> tuple[nn.Module, ConcreteTracer, fx.Graph]:
    module = _shell(module)
    tracer = ConcreteTracer(example, leaves, real=real)
    try:
        with _quiet():
            return module, tracer, tracer.trace(module)
    except Exception as error:
        pass_on_memory_errors(error)
        where = tracer.failed_in or f"the model's own forward ({type(module).__name__})"
        raise TraceError(
            f"cannot trace {where}: {error}. Rewrite its forward without Python control flow on "
            f"tensor values, or keep it whole with "
            f'quantization.leaf_modules = ["<name or class>"] (a leaf stays in floating point)'
        ) from error


def _shell(module: nn.Module) -> nn.Module:
    """A copy that shares all tensors: a forward may keep what it computes in its module."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's log of operations that fail on shapes: they are tried again on values."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
