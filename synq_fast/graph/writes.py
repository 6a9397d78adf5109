"""In-place operations of a traced network turned into values that are never overwritten."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import handle_torch_function, has_torch_function

from synq_fast.errors import TraceError
from synq_fast.graph.nodes import note_shape
from synq_fast.runtime.out_of_memory import pass_on_memory_errors

Values = Mapping[fx.Node, tuple[Any, Any]]
Mode = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Write:
    """A node that changed memory which earlier values lie in."""

    node: fx.Node
    written: list[fx.Node]
    """The node's own inputs that it changed."""
    aliases: list[fx.Node]
    """All earlier values in that memory, in order."""


def memory_of(tensor: Tensor) -> int:
    """What tensors have in common that share memory."""
    return int(tensor.untyped_storage()._cdata)


def after(value: Any, write: Any) -> Any:
    """``value`` once ``write`` has been done: a view of memory that the write has changed."""
    if has_torch_function((value, write)):  # traced once more, as unpickling does
        return handle_torch_function(after, (value, write), value, write)
    return value


def with_item(x: Tensor, index: Any, value: Any) -> Any:
    """A copy of ``x`` after ``x[index] = value``."""
    if has_torch_function((x, value)):
        return handle_torch_function(with_item, (x, value), x, index, value)
    result = x.clone()
    result[index] = value
    return result


def set_item(x: Tensor, index: Any, value: Any) -> Any:
    """``x`` after ``x[index] = value``, in place."""
    if has_torch_function((x, value)):
        return handle_torch_function(set_item, (x, value), x, index, value)
    x[index] = value
    return x


_VIEW_OR_COPY = {"reshape", "reshape_as", "flatten", "ravel", "contiguous", "Flatten"}


def layout_decides(
    graph: fx.Graph, root: nn.Module, writes: Iterable[Write], values: Values
) -> bool:
    """Whether the strides of tensors decide what a write reaches.

    ``reshape`` and its like give a view or a copy, as the layout has it; and the layout that torch
    works out from shapes alone is not always that of its kernels.
    """

    def memory(nodes: Iterable[fx.Node]) -> set[int]:
        tensors = (values[node][0] for node in nodes if node in values)
        return {memory_of(tensor) for tensor in tensors if isinstance(tensor, Tensor)}

    written = memory(node for write in writes for node in write.written)
    return any(
        _name(node, root) in _VIEW_OR_COPY and written & memory((node, *node.all_input_nodes))
        for node in graph.nodes
    )


def _name(node: fx.Node, root: nn.Module) -> str:
    """What a node calls: a method, a function, or a module's type."""
    if node.op == "call_module":
        return type(root.get_submodule(str(node.target))).__name__
    return str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))


def without_writes(
    graph: fx.Graph, root: nn.Module, writes: Iterable[Write], values: Values, mode: Mode
) -> dict[str, nn.Module]:
    """Rewrite in-place operations, so that each node keeps its value, and later readers follow.

    An operation with an out-of-place twin becomes that. Any other works on a copy of the memory,
    in which the views that are read later are made again.

    Args:
        graph: as it was traced, changed in place.
        root: the module that it calls into; stays as it is.
        writes: what changed memory, in order.
        values: what each node gave while tracing.
        mode: the context in which these values can be worked with.

    Returns:
        Out-of-place copies, by target, of modules that work in place.

    Raises:
        TraceError: a parameter or buffer is overwritten.
    """
    return _Rewriting(graph, root, {write.node: write for write in writes}, values, mode).run()


class _Rewriting:
    def __init__(
        self,
        graph: fx.Graph,
        root: nn.Module,
        writes: dict[fx.Node, Write],
        values: Values,
        mode: Mode,
    ) -> None:
        self.graph, self.root, self.writes, self.values = graph, root, writes, values
        self.mode = mode
        self.current: dict[fx.Node, fx.Node] = {}
        """Where the present content of an overwritten value is."""
        self.order = {node: index for index, node in enumerate(graph.nodes)}
        self.readers = {node: list(node.users) for node in graph.nodes}
        self.inputs = {node: node.all_input_nodes for node in graph.nodes}
        self.original = {node: (node.args, node.kwargs) for node in graph.nodes}
        self.modules: dict[str, nn.Module] = {}

    def run(self) -> dict[str, nn.Module]:
        for node in list(self.order):
            self._read_present(node)
            write = self.writes.get(node)
            if write is not None:
                self._check(write)
                later = self._read_later(write)
                if not self._replace(write, later):
                    self._write_to_copy(write, later)
        self.graph.lint()
        return self.modules

    def _read_present(self, node: fx.Node) -> None:
        def present(source: fx.Node) -> fx.Node:
            return self.current.get(source, source)

        node.args = fx.node.map_arg(node.args, present)
        node.kwargs = fx.node.map_arg(node.kwargs, present)

    def _check(self, write: Write) -> None:
        for alias in write.aliases:
            if alias.op == "get_attr":
                raise TraceError(
                    f"the model overwrites its own {alias.target} in its forward "
                    f"({write.node.name}), so that its outputs depend on what it saw before; "
                    f"take that out of the forward, or clone() the tensor first"
                )

    def _read_later(self, write: Write) -> list[fx.Node]:
        here = self.order[write.node]
        roots = {w.aliases[0] for node, w in self.writes.items() if self.order[node] > here}
        return [
            alias
            for alias in write.aliases
            if alias in roots or any(self.order[reader] > here for reader in self.readers[alias])
        ]

    def _replace(self, write: Write, later: list[fx.Node]) -> bool:
        """Use the out-of-place twin, where all that is read later is the same whole tensor."""
        node, first = write.node, write.written[0]
        same = [alias for alias in write.aliases if self._same(alias, first)]
        # A part of a larger tensor may be replaced as well, where the rest is not read again.
        sets = node.target is operator.setitem
        whole = set(later) <= set(same) and (sets or self._same(node, first))
        if len(write.written) > 1 or not whole:
            return False
        twin = out_of_place(node, self.root)
        if twin is None or not self._agrees(node, twin):
            return False
        if twin.module is not None:
            target = str(node.target)
            self.modules.setdefault(target, twin.module)
        else:
            node.target, node.args, node.kwargs = twin.target, twin.args, twin.kwargs
        self._stands_for(node, first)
        self.current.update(dict.fromkeys(same, node))
        return True

    def _same(self, a: fx.Node, b: fx.Node) -> bool:
        x, y = self.values[a][0], self.values[b][0]
        return (
            isinstance(x, Tensor)
            and isinstance(y, Tensor)
            and memory_of(x) == memory_of(y)
            and (x.shape, x.stride(), x.dtype) == (y.shape, y.stride(), y.dtype)
            and x.storage_offset() == y.storage_offset()
        )

    def _agrees(self, node: fx.Node, twin: Twin) -> bool:
        """Whether the twin gives the same type and shape (``x += y`` never promotes x)."""
        originals = {
            self.current.get(source, source): self.values[source][0] for source in self.inputs[node]
        }

        def value_of(source: fx.Node) -> Any:
            return originals[source]

        args = fx.node.map_arg(twin.args, value_of)
        kwargs = fx.node.map_arg(twin.kwargs, value_of)
        expected = self.values[self.writes[node].written[0]][0]
        with torch.no_grad(), self.mode():
            versions = [(t, t._version) for t in originals.values() if isinstance(t, Tensor)]
            try:
                found = twin.call(*args, **kwargs)
            except Exception as error:
                pass_on_memory_errors(error)
                return False
            untouched = all(tensor._version == version for tensor, version in versions)
        return (
            untouched
            and isinstance(found, Tensor)
            and (found.shape, found.dtype) == (expected.shape, expected.dtype)
        )

    def _write_to_copy(self, write: Write, later: list[fx.Node]) -> None:
        node, root = write.node, write.aliases[0]
        with self.graph.inserting_before(node):
            start = self.current.get(root, root)
            # Whatever layout comes in later, views of the copy are views again.
            plain = self.values[root][0].is_contiguous()
            layout = torch.contiguous_format if plain else torch.preserve_format
            copies = {root: self.graph.call_method("clone", (start,), {"memory_format": layout})}
            self._stands_for(copies[root], root)
            for alias in (*write.written, *later):
                self._made_again(alias, write, copies)
        renamed = {self.current.get(alias, alias): copied for alias, copied in copies.items()}

        def copied(source: fx.Node) -> fx.Node:
            return renamed.get(source, source)

        node.args = fx.node.map_arg(node.args, copied)
        node.kwargs = fx.node.map_arg(node.kwargs, copied)
        if node.target is operator.setitem:
            node.target = set_item
        position = done = self._written_by_module(node, copies[write.written[0]])
        for alias in later:
            with self.graph.inserting_after(position):
                position = self.graph.call_function(after, (copies[alias], done))
            self._stands_for(position, alias)
            self.current[alias] = position

    def _written_by_module(self, node: fx.Node, target: fx.Node) -> fx.Node:
        """The node that writes to ``target``: a module that does works out of place everywhere."""
        twin = out_of_place(node, self.root) if node.op == "call_module" else None
        if twin is None or twin.module is None:
            return node
        self.modules.setdefault(str(node.target), twin.module)
        with self.graph.inserting_before(node):
            # Its backward may read what it was given, which is overwritten next.
            given = self.graph.call_method("clone", (target,))
        node.replace_input_with(target, given)
        with self.graph.inserting_after(node):
            return self.graph.call_method("copy_", (target, node))

    def _made_again(self, alias: fx.Node, write: Write, copies: dict[fx.Node, fx.Node]) -> fx.Node:
        """The view that ``alias`` is, of the copied memory."""
        if alias in copies:
            return copies[alias]
        sources = [source for source in self.inputs[alias] if source in set(write.aliases)]
        if alias in self.writes:
            # An in-place operation gives back what it wrote to.
            sources = [s for s in self.writes[alias].written if self._same(s, alias)]
            mapped = {s: self._made_again(s, write, copies) for s in sources[:1]}
        else:
            mapped = {s: self._made_again(s, write, copies) for s in sources}
        if not mapped:
            raise TraceError(
                f"{write.node.name} overwrites memory in which {alias.name} lies as well, in a way "
                f"that tracing cannot follow; use the out-of-place form, or clone() before it"
            )
        if alias in self.writes:
            copies[alias] = mapped[sources[0]]
            return copies[alias]

        def read(source: fx.Node) -> fx.Node:
            return mapped[source] if source in mapped else self.current.get(source, source)

        args, kwargs = (fx.node.map_arg(a, read) for a in self.original[alias])
        copies[alias] = self.graph.create_node(alias.op, alias.target, args, kwargs)
        self._stands_for(copies[alias], alias)
        return copies[alias]

    def _stands_for(self, node: fx.Node, value: fx.Node) -> None:
        """Note what ``node`` gives: a value like another one's."""
        note_shape(node, self.values[value][0])


@dataclass(frozen=True)
class Twin:
    """The out-of-place form of a call."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    call: Callable[..., Any]
    module: nn.Module | None = None


def out_of_place(node: fx.Node, root: nn.Module) -> Twin | None:
    """The form of a call that leaves its input alone; None where none is known."""
    if node.op == "call_module":
        module: Any = root.get_submodule(str(node.target))
        if getattr(module, "inplace", False) is not True:
            return None
        module = copy.copy(module)
        module.inplace = False
        return Twin(node.target, node.args, node.kwargs, module, module)
    name = _name(node, root)
    if node.op == "call_method":
        twin = getattr(Tensor, name.removesuffix("_"), None)
        if not name.endswith("_") or name.endswith("__") or not callable(twin):
            return None
        return Twin(name.removesuffix("_"), node.args, node.kwargs, twin)
    if node.target is operator.setitem:
        return Twin(with_item, node.args, node.kwargs, with_item)
    if getattr(operator, name, None) is node.target and name.startswith("i"):
        for candidate in (name[1:], f"{name[1:]}_"):
            twin = getattr(operator, candidate, None)
            if twin is not None:
                return Twin(twin, node.args, node.kwargs, twin)
    for home in (torch, nn.functional):
        if name.endswith("_") and getattr(home, name, None) is node.target:
            twin = getattr(home, name.removesuffix("_"), None)
            return None if twin is None else Twin(twin, node.args, node.kwargs, twin)
    return _without_flag(node)


def _without_flag(node: fx.Node) -> Twin | None:
    """A call whose ``inplace`` argument, by name or position, is left at False."""
    target: Any = node.target
    try:
        bound = inspect.signature(target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return None
    if bound.arguments.get("inplace") is not True:
        return None
    bound.arguments["inplace"] = False
    return Twin(target, bound.args, bound.kwargs, target)
