"""Symbolic tracing beside the shapes of an example, so that Python may look at them."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from synq_fast.graph.attention import opened
from synq_fast.graph.nodes import TRACED_IMAGES, attribute, run_node
from synq_fast.graph.writes import Write, memory_of

Pair = tuple[Any, Any]
_BATCHES = (TRACED_IMAGES, 3)
"""Two sizes: what differs between them follows the batch and stays symbolic."""
_CONCRETE = (bool, int, float, complex, str, torch.dtype, torch.device, torch.memory_format)


class ConcreteTracer(fx.Tracer):
    """Records a module's forward while running it on the shapes of two batch sizes.

    What does not depend on the batch is a plain Python value to the module: ``x.shape[1]``, a
    comparison of sizes, the length of a list of chunks. Every argument after the images keeps the
    default that it has.
    """

    def __init__(self, example: Tensor, leaves: Iterable[str], *, real: bool = False) -> None:
        """Prepare.

        Args:
            example: images (B, C, H, W) of the model's input size; values do not matter.
            leaves: qualified names or class names of submodules that stay one opaque call.
            real: run on zeros in memory instead of shapes alone, for models with operations
                that only work on values.
        """
        super().__init__()
        self.leaves = frozenset(leaves)
        self.failed_in: str | None = None
        self.writes: list[Write] = []
        self.values: dict[fx.Node, Pair] = {}
        _start_autograd()
        self._fake = None if real else FakeTensorMode(allow_non_fake_inputs=True)
        self._evaluating = False
        self._by_memory: dict[int, list[fx.Node]] = {}
        with self.mode():
            first, second = (
                torch.zeros((n, *example.shape[1:]), dtype=example.dtype, device=example.device)
                for n in _BATCHES
            )
        self._images: Pair = (first, second)

    def mode(self) -> AbstractContextManager[Any]:
        """The context in which the values can be worked with."""
        return nullcontext() if self._fake is None else self._fake

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays one call: what the caller named, and torch's own layers."""
        if {module_qualified_name, type(m).__name__} & self.leaves:
            return True
        # Its products are quantized one by one.
        attends = isinstance(m, nn.MultiheadAttention)
        return not attends and super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The images alone: Python fills in the defaults of all other arguments."""
        names = [
            p.name
            for p in list(inspect.signature(root_fn).parameters.values())[1:]
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        images = self.create_proxy("placeholder", names[0] if names else "x", (), {})
        return root_fn, [self.root, images]

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Record a call, or trace through it; remembers in which module tracing failed."""
        if self._evaluating:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            # The innermost module is the first to see the exception.
            self.failed_in = self.failed_in or f"{self.path_of_module(m)} ({type(m).__name__})"
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters as proxies, but as themselves to a module that is being run."""
        if self._evaluating:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that knows what it stands for."""
        return _ValueProxy(node, self)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *naming: Any, **more: Any
    ) -> Any:
        """Record a node and run it; gives a plain value where the batch has no part in it."""
        open_form = opened(target) if kind == "call_function" else None
        if open_form is not None:
            return open_form(*args, **kwargs)
        proxy = super().create_proxy(kind, target, args, kwargs, *naming, **more)
        node = proxy.node
        pair = self._images if kind == "placeholder" else self._evaluated(node)
        self._remember(node, pair)
        wrote = bool(self.writes) and self.writes[-1].node is node
        known, value = _concrete(pair)
        if known and not wrote:
            self.graph.erase_node(node)
            del self.values[node]
            return value
        if isinstance(pair[0], torch.Size):
            sizes = zip(*pair, strict=True)
            return Sizes(a if a == b else proxy[i] for i, (a, b) in enumerate(sizes))
        return value if known else proxy

    def value(self, node: fx.Node) -> Pair:
        """What a node gives for both batch sizes."""
        if node not in self.values:
            # A constant tensor or a buffer, which fx records on its own.
            held = attribute(self.root, str(node.target))
            self._remember(node, (held, held))
        return self.values[node]

    def _evaluated(self, node: fx.Node) -> Pair:
        before = [
            (source, tensor, tensor._version)
            for source in node.all_input_nodes
            for tensor in tensors_of(self.value(source)[0])
        ]
        results: list[Any] = []
        for index in (0, 1):

            def value_of(source: fx.Node, index: int = index) -> Any:
                return self.value(source)[index]

            args = fx.node.map_arg(node.args, value_of)
            kwargs = fx.node.map_arg(node.kwargs, value_of)
            self._evaluating = True
            try:
                with torch.no_grad(), self.mode():
                    results.append(run_node(self.root, node, args, kwargs))
            finally:
                self._evaluating = False
        written = [source for source, tensor, version in before if tensor._version != version]
        if node.target is operator.setitem:
            written = written[:1]  # the value may be a view of the same memory
        if written:
            touched = {memory_of(t) for s in written for t in tensors_of(self.value(s)[0])}
            aliases = [alias for key in touched for alias in self._by_memory.get(key, ())]
            self.writes.append(
                Write(node, list(dict.fromkeys(written)), list(dict.fromkeys(aliases)))
            )
        return results[0], results[1]

    def _remember(self, node: fx.Node, pair: Pair) -> None:
        self.values[node] = pair
        for tensor in tensors_of(pair[0]):
            self._by_memory.setdefault(memory_of(tensor), []).append(node)


@cache
def _start_autograd() -> None:
    """Begin the first backward of a process before the first FakeTensorMode.

    Without a GPU the mode pretends one; autograd would start a thread for it, and a process with
    such threads may not fork and differentiate in the child.
    """
    with torch.inference_mode(False), torch.enable_grad():
        torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True).backward()


class Sizes(tuple[Any, ...]):
    """A shape whose entries are numbers, and proxies where they follow the batch."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return Sizes(found) if isinstance(index, slice) else found

    def numel(self) -> Any:
        """The product of all sizes."""
        product: Any = 1
        for size in self:
            product = product * size
        return product


class _ValueProxy(fx.Proxy):
    """Answers what the shapes alone decide."""

    tracer: ConcreteTracer

    def __getattr__(self, name: str) -> Any:
        known = inspect.getattr_static(Tensor, name, None)
        stands_for_tensor = isinstance(self.tracer.value(self.node)[0], Tensor)
        if stands_for_tensor and known is not None and not callable(known):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def __len__(self) -> int:
        first, second = map(len, self.tracer.value(self.node))
        if first != second:
            raise TypeError("the number of images is not known while a model is traced")
        return first

    def __iter__(self) -> Iterator[Any]:
        return (operator.getitem(self, i) for i in range(len(self)))

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __iadd__(self, other: Any) -> Any:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place(operator.itruediv, other)

    def __ifloordiv__(self, other: Any) -> Any:
        return self._in_place(operator.ifloordiv, other)

    def __imod__(self, other: Any) -> Any:
        return self._in_place(operator.imod, other)

    def __ipow__(self, other: Any) -> Any:
        return self._in_place(operator.ipow, other)

    def __iand__(self, other: Any) -> Any:
        return self._in_place(operator.iand, other)

    def __ior__(self, other: Any) -> Any:
        return self._in_place(operator.ior, other)

    def __ixor__(self, other: Any) -> Any:
        return self._in_place(operator.ixor, other)

    def _in_place(self, operation: Callable[[Any, Any], Any], other: Any) -> Any:
        # Without these methods Python would compute a new value and leave the aliases alone.
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    def __contains__(self, item: Any) -> bool:
        # Python would otherwise compare with every element in turn.
        return bool(self.tracer.create_proxy("call_function", operator.contains, (self, item), {}))


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in a value, which may be a container."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _concrete(pair: Pair) -> tuple[bool, Any]:
    """Whether both batch sizes give the same plain value, and that value."""
    first, second = pair
    if first is None and second is None:
        return True, None
    if isinstance(first, torch.Size):
        return first == second, first
    if type(first) is type(second) and isinstance(first, _CONCRETE):
        return first == second, first
    return False, None
