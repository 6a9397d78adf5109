"""A frozen network in PyTorch's own integers: oneDNN's products of 8-bit numbers."""

from __future__ import annotations

import math
from typing import Any

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
from synq_fast.errors import ModelError
from synq_fast.graph import called_module, shape_of
from synq_fast.graph.nodes import copied
from synq_fast.graph.structure import is_addition
from synq_fast.quant.grid import operation, origins
from synq_fast.quant.placement import relu_bound

_POOLS = frozenset({"MaxPool2d", "max_pool2d"})
_CODES_ALIKE = """
Flatten flatten reshape view permute transpose contiguous Identity Dropout dropout squeeze unsqueeze
"""
_MOVES = _POOLS.union(_CODES_ALIKE.split())
"""What does to codes as it does to the numbers that they stand for."""


def int8_reason() -> str | None:
    """Why this machine cannot run networks in integers; None where it can."""
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch has no oneDNN, whose integer products are used"
    if not hasattr(torch.ops.onednn, "qconv_pointwise"):
        return "this PyTorch's oneDNN has no quantized convolutions"
    return None


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
    result = copied(frozen)
    result.meta.update(frozen.meta)
    _Builder(frozen, result).build()
    result.delete_all_unused_submodules()
    result.graph.lint()
    result.recompile()
    return result.eval()


class _Builder:
    """Rewrites a copy of a frozen network."""

    def __init__(self, frozen: fx.GraphModule, result: fx.GraphModule) -> None:
        self.frozen, self.result = frozen, result
        self.grids: dict[fx.Node, FrozenQuantizer] = {}
        """What gives codes, with their grid."""
        self.numbers: dict[fx.Node, fx.Node] = {}
        self.order = {node: i for i, node in enumerate(result.graph.nodes)}

    def build(self) -> None:
        for node in list(self.result.graph.nodes):
            quantizer = called_module(self.frozen, node)
            if isinstance(quantizer, FrozenQuantizer):
                # Those of heads are read by products, which are in floating point here.
                if quantizer.is_whole:
                    self._quantize(node, quantizer)
            elif operation(self.result, node) in _MOVES and node.all_input_nodes:
                source = node.all_input_nodes[0]
                if source in self.grids and len(node.all_input_nodes) == 1:
                    self.grids[node] = self.grids[source]
                    self._pool(node)
        # What no quantizer took over is a layer that ends in floating point.
        for node in list(self.result.graph.nodes):
            if self._is_integer(node):
                self._put(node, node, output=None, bound=None)
        for node in list(self.result.graph.nodes):
            for source in node.all_input_nodes:
                if source in self.grids and not self._takes_codes(node):
                    node.replace_input_with(source, self._as_numbers(source))

    def _quantize(self, node: fx.Node, quantizer: FrozenQuantizer) -> None:
        """Give codes in the place of a quantizer, by the layer before it where that is possible."""
        self.grids[node] = quantizer
        source, bound = node.all_input_nodes[0], None
        passed = [node]
        if len(source.users) == 1 and relu_bound(self.result, source) is not None:
            bound = relu_bound(self.result, source)
            passed.append(source)
            source = source.all_input_nodes[0]
        alone = len(source.users) == 1
        if alone and self._is_integer(source):
            self._put(source, node, output=quantizer, bound=bound, absorbed=passed[1:])
            return
        if alone and is_addition(source) and len(source.all_input_nodes) == 2:
            operands = source.all_input_nodes
            for layer, other in (operands, operands[::-1]):
                joins = (
                    self._is_integer(layer)
                    and isinstance(called_module(self.frozen, layer), FrozenConv2d)
                    and len(layer.users) == 1
                    and other in self.grids
                    and shape_of(layer) == shape_of(other)
                    and bound in (None, math.inf)
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
                    return
        self.result.add_submodule(str(node.target), Int8Quantizer(quantizer))

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
        """Let ``node`` call a layer of oneDNN and what it joins."""
        frozen = called_module(self.frozen, layer)
        assert isinstance(frozen, FrozenLayer)
        source = layer.all_input_nodes[0]
        place = self.order[node]
        later = added is not None and any(self.order[user] > place for user in added.users)
        made = Int8Layer(
            frozen,
            self._grid_of(source),
            shape_of(source),
            output=output,
            bound=bound,
            added=None if added is None else self.grids[added],
            added_is_read_later=later,
        )
        name = f"int8_{node.name}"
        self.result.add_submodule(name, made)
        codes = self._as_codes(source, node)
        node.target, node.kwargs = name, {}
        node.args = (codes,) if added is None else (codes, added)
        for gone in [*(absorbed or ()), *([layer] if layer is not node else ())]:
            if not gone.users:
                self.result.graph.erase_node(gone)

    def _is_integer(self, node: fx.Node) -> bool:
        layer = called_module(self.result, node)
        return (
            isinstance(layer, FrozenLayer) and layer.input_scale is not None and fits_onednn(layer)
        )

    def _takes_codes(self, node: fx.Node) -> bool:
        return isinstance(called_module(self.result, node), Int8Layer) or node in self.grids

    def _grid_of(self, source: fx.Node) -> FrozenQuantizer:
        if source in self.grids:
            return self.grids[source]
        made_by = next(n for n in origins(self.result, source) if n in self.grids)
        return self.grids[made_by]

    def _as_codes(self, source: fx.Node, reader: fx.Node) -> fx.Node:
        """The codes of a value that something moved in floating point."""
        if source in self.grids:
            return source
        quantizer = self._grid_of(source)
        name = f"codes_for_{reader.name}"
        self.result.add_submodule(name, Int8Quantizer(quantizer))
        with self.result.graph.inserting_before(reader):
            codes = self.result.graph.call_module(name, (source,))
        self.grids[codes] = quantizer
        self.order[codes] = self.order[reader]
        return codes

    def _as_numbers(self, codes: fx.Node) -> fx.Node:
        if codes not in self.numbers:
            name = f"numbers_{codes.name}"
            self.result.add_submodule(name, Dequantizer(self.grids[codes]))
            with self.result.graph.inserting_after(codes):
                self.numbers[codes] = self.result.graph.call_module(name, (codes,))
            self.order[self.numbers[codes]] = self.order[codes]
        return self.numbers[codes]
