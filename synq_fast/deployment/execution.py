"""A frozen network with codes between its layers: on a CPU by oneDNN, on a GPU by own products."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import fx, nn

from synq_fast.deployment.frozen import FrozenConv2d, FrozenLayer, FrozenQuantizer
from synq_fast.deployment.int8_modules import (
    Dequantizer,
    Int8Layer,
    Int8MaxPool,
    Int8Quantizer,
    fits_onednn,
)
from synq_fast.deployment.product_modules import (
    CodeNumbers,
    CodeQuantizer,
    ProductLayer,
    fits_product,
)
from synq_fast.errors import ModelError
from synq_fast.graph import called_module, shape_of
from synq_fast.graph.nodes import copied, relu_bound
from synq_fast.graph.structure import is_addition
from synq_fast.ops import available_backends
from synq_fast.quant.grid import operation, origins

_POOLS = frozenset({"MaxPool2d", "max_pool2d"})
_CODES_ALIKE = """
Flatten flatten reshape view permute transpose contiguous Identity Dropout dropout squeeze unsqueeze
"""
_MOVES = frozenset(_CODES_ALIKE.split())
"""What does to codes as it does to the numbers that they stand for, whatever holds them."""


def int8_reason() -> str | None:
    """Why this machine cannot run networks in integers; None where it can."""
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch has no oneDNN, whose integer products are used"
    if not hasattr(torch.ops.onednn, "qconv_pointwise"):
        return "this PyTorch's oneDNN has no quantized convolutions"
    return None


def product_reason(device: torch.device) -> str | None:
    """Why a device has no products of codes; None where it has."""
    if device.type != "cuda":
        return f"integers run on a CPU or on a CUDA device, not on {device}"
    return available_backends()["triton"]


def saturates() -> bool:
    """Whether this processor adds pairs of 8-bit products in 16 bits, so that some overflow."""
    return not any(
        getattr(torch.cpu, name, lambda: False)()
        for name in ("_is_vnni_supported", "_is_amx_tile_supported")
    )


@torch.no_grad()
def int8_form(frozen: fx.GraphModule) -> fx.GraphModule:
    """The network with codes of uint8 between its layers, on a CPU.

    Layers join with the ReLU and the quantizer behind them, and with the sum that they feed where
    the other operand is on a grid. Values that meet anything else are in floating point there.

    Args:
        frozen: a result of ``freeze``, best with ``layer_inputs_only``; stays as it is.

    Raises:
        ModelError: the machine cannot.
    """
    reason = int8_reason()
    if reason is not None:
        raise ModelError(f'execution="int8" does not run here: {reason}')
    return _built(_OnednnBuilder, frozen)


@torch.no_grad()
def product_form(frozen: fx.GraphModule) -> fx.GraphModule:
    """The network with codes of int8 around its linear layers and 1 x 1 convolutions, for a GPU.

    They join as in ``int8_form``. What else there is, other convolutions among it, stays as it is.
    Every code is equal to the frozen network's, and on channels_last images every output too. On a
    CPU the products are plain PyTorch.

    Args:
        frozen: a result of ``freeze``, best with ``layer_inputs_only``; stays as it is.
    """
    return _built(_ProductBuilder, frozen)


def _built(builder: type[_Builder], frozen: fx.GraphModule) -> fx.GraphModule:
    result = copied(frozen)
    result.meta.update(frozen.meta)
    builder(frozen, result).build()
    result.delete_all_unused_submodules()
    result.graph.lint()
    result.recompile()
    return result.eval()


class _Builder(ABC):
    """Rewrites a copy of a frozen network."""

    pools_codes: ClassVar[bool]
    """Whether maximum pooling takes codes."""

    def __init__(self, frozen: fx.GraphModule, result: fx.GraphModule) -> None:
        self.frozen, self.result = frozen, result
        self.grids: dict[fx.Node, FrozenQuantizer] = {}
        """What gives codes, with their grid."""
        self.quantizers: dict[fx.Node, FrozenQuantizer] = {}
        """Those with one grid for all heads, whether they give codes or not."""
        self.numbers: dict[fx.Node, fx.Node] = {}
        self.made: set[fx.Node] = set()
        """What takes codes."""
        self.order = {node: i for i, node in enumerate(result.graph.nodes)}

    @abstractmethod
    def fits(self, layer: FrozenLayer) -> bool:
        """Whether a layer of integer sums takes codes."""

    @abstractmethod
    def layer(self, frozen: FrozenLayer, source: fx.Node, joined: _Joined) -> nn.Module:
        """What takes the place of a layer that reads ``source``."""

    @abstractmethod
    def codes_of(self, quantizer: FrozenQuantizer) -> nn.Module:
        """What gives the codes of numbers."""

    @abstractmethod
    def numbers_of(self, quantizer: FrozenQuantizer) -> nn.Module:
        """What gives the numbers of codes."""

    @abstractmethod
    def joins_sum(self, layer: FrozenLayer, bound: float | None) -> bool:
        """Whether a layer takes in the sum that it feeds, and a ReLU that ends at ``bound``."""

    def gives_codes(self, node: fx.Node) -> bool:
        """Whether a quantizer that joins no layer gives codes."""
        return True

    def build(self) -> None:
        for node in list(self.result.graph.nodes):
            quantizer = called_module(self.frozen, node)
            if isinstance(quantizer, FrozenQuantizer):
                # Those of heads are read by products, which are in floating point here.
                if quantizer.is_whole:
                    self._quantize(node, quantizer)
            elif self.moves(node) and node.all_input_nodes:
                source = node.all_input_nodes[0]
                if source in self.grids and len(node.all_input_nodes) == 1:
                    self.grids[node] = self.grids[source]
                    self.made.add(node)
                    self._pool(node)
        # What no quantizer took over is a layer that ends in floating point.
        for node in list(self.result.graph.nodes):
            if self._is_integer(node):
                self._put(node, node, output=None, bound=None)
        for node in list(self.result.graph.nodes):
            for source in node.all_input_nodes:
                if source in self.grids and node not in self.made:
                    node.replace_input_with(source, self._as_numbers(source))

    def moves(self, node: fx.Node) -> bool:
        """Whether a node does to codes what it does to numbers."""
        name = operation(self.result, node)
        return name in _MOVES or (self.pools_codes and name in _POOLS)

    def _quantize(self, node: fx.Node, quantizer: FrozenQuantizer) -> None:
        """Give codes in the place of a quantizer, by the layer before it where that is possible."""
        self.quantizers[node] = quantizer
        source, bound = node.all_input_nodes[0], None
        passed = [node]
        if len(source.users) == 1 and relu_bound(self.result, source) is not None:
            bound = relu_bound(self.result, source)
            passed.append(source)
            source = source.all_input_nodes[0]
        alone = len(source.users) == 1
        if alone and self._is_integer(source):
            self._put(source, node, output=quantizer, bound=bound, absorbed=passed[1:])
            self.grids[node] = quantizer
            return
        if alone and is_addition(source) and len(source.all_input_nodes) == 2:
            operands = source.all_input_nodes
            for layer, other in (operands, operands[::-1]):
                joins = (
                    self._is_integer(layer)
                    and self.joins_sum(self._frozen_layer(layer), bound)
                    and len(layer.users) == 1
                    and other in self.grids
                    and shape_of(layer) == shape_of(other)
                )
                if joins:
                    self._put(
                        layer,
                        node,
                        output=quantizer,
                        bound=bound,
                        absorbed=[*passed[1:], source],
                        added=other,
                    )
                    self.grids[node] = quantizer
                    return
        if self.gives_codes(node):
            self.result.add_submodule(str(node.target), self.codes_of(quantizer))
            self.grids[node] = quantizer

    def _pool(self, node: fx.Node) -> None:
        if operation(self.result, node) not in _POOLS:
            return
        module = called_module(self.frozen, node)
        if isinstance(module, nn.MaxPool2d):
            pool = Int8MaxPool(
                module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
            )
        else:
            given: Any = node.args[1:], node.kwargs
            pool = Int8MaxPool(*given[0], **given[1])
        name = f"int8_{node.name}"
        self.result.add_submodule(name, pool)
        node.op, node.target = "call_module", name
        node.args, node.kwargs = node.args[:1], {}

    def _put(
        self,
        layer: fx.Node,
        node: fx.Node,
        *,
        output: FrozenQuantizer | None,
        bound: float | None,
        absorbed: list[fx.Node] | None = None,
        added: fx.Node | None = None,
    ) -> None:
        """Let ``node`` call a layer that takes codes, and what it joins."""
        source = layer.all_input_nodes[0]
        place = self.order[node]
        later = added is not None and any(self.order[user] > place for user in added.users)
        joined = _Joined(output, bound, None if added is None else self.grids[added], later)
        made = self.layer(self._frozen_layer(layer), source, joined)
        self.made.add(node)
        name = f"int8_{node.name}"
        self.result.add_submodule(name, made)
        codes = self._as_codes(source, node)
        node.target, node.kwargs = name, {}
        node.args = (codes,) if added is None else (codes, added)
        for gone in [*(absorbed or ()), *([layer] if layer is not node else ())]:
            if not gone.users:
                self.result.graph.erase_node(gone)

    def _frozen_layer(self, node: fx.Node) -> FrozenLayer:
        layer = called_module(self.frozen, node)
        assert isinstance(layer, FrozenLayer)
        return layer

    def _is_integer(self, node: fx.Node) -> bool:
        layer = called_module(self.result, node)
        return isinstance(layer, FrozenLayer) and layer.input_scale is not None and self.fits(layer)

    def grid_of(self, source: fx.Node) -> FrozenQuantizer:
        """The grid of what a layer of integer sums reads."""
        known = {**self.quantizers, **self.grids}
        return known[next(n for n in (source, *origins(self.result, source)) if n in known)]

    def _as_codes(self, source: fx.Node, reader: fx.Node) -> fx.Node:
        """The codes of a value that something moved in floating point."""
        if source in self.grids:
            return source
        quantizer = self.grid_of(source)
        name = f"codes_for_{reader.name}"
        self.result.add_submodule(name, self.codes_of(quantizer))
        with self.result.graph.inserting_before(reader):
            codes = self.result.graph.call_module(name, (source,))
        self.grids[codes] = quantizer
        self.order[codes] = self.order[reader]
        return codes

    def _as_numbers(self, codes: fx.Node) -> fx.Node:
        if codes not in self.numbers:
            name = f"numbers_{codes.name}"
            self.result.add_submodule(name, self.numbers_of(self.grids[codes]))
            with self.result.graph.inserting_after(codes):
                self.numbers[codes] = self.result.graph.call_module(name, (codes,))
            self.order[self.numbers[codes]] = self.order[codes]
        return self.numbers[codes]


class _Joined(NamedTuple):
    """What a layer takes in."""

    output: FrozenQuantizer | None
    bound: float | None
    added: FrozenQuantizer | None
    added_is_read_later: bool


class _OnednnBuilder(_Builder):
    """With everything in oneDNN's integers that it has."""

    pools_codes = True

    def fits(self, layer: FrozenLayer) -> bool:
        return fits_onednn(layer)

    def layer(self, frozen: FrozenLayer, source: fx.Node, joined: _Joined) -> nn.Module:
        return Int8Layer(frozen, self.grid_of(source), shape_of(source), **joined._asdict())

    def codes_of(self, quantizer: FrozenQuantizer) -> nn.Module:
        return Int8Quantizer(quantizer)

    def numbers_of(self, quantizer: FrozenQuantizer) -> nn.Module:
        return Dequantizer(quantizer)

    def joins_sum(self, layer: FrozenLayer, bound: float | None) -> bool:
        return isinstance(layer, FrozenConv2d) and bound in (None, math.inf)


class _ProductBuilder(_Builder):
    """With products of matrices alone in codes, and codes where such products read or give them."""

    pools_codes = False

    def fits(self, layer: FrozenLayer) -> bool:
        return fits_product(layer)

    def layer(self, frozen: FrozenLayer, source: fx.Node, joined: _Joined) -> nn.Module:
        output, bound, added, _ = joined
        return ProductLayer(frozen, self.grid_of(source), output=output, bound=bound, added=added)

    def codes_of(self, quantizer: FrozenQuantizer) -> nn.Module:
        return CodeQuantizer(quantizer)

    def numbers_of(self, quantizer: FrozenQuantizer) -> nn.Module:
        return CodeNumbers(quantizer)

    def joins_sum(self, layer: FrozenLayer, bound: float | None) -> bool:
        return True

    def gives_codes(self, node: fx.Node) -> bool:
        return any(
            self._is_integer(user) or (self.moves(user) and self.gives_codes(user))
            for user in node.users
        )
