"""A frozen network in the form of exported files: float operations between codes and scales."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from synq_fast.deployment.frozen import FrozenLayer, FrozenLinear, FrozenQuantizer
from synq_fast.deployment.targets import Target
from synq_fast.graph import called_module
from synq_fast.graph.nodes import copied, relu_bound
from synq_fast.quant.grid import operation, origins

_NAMESPACE = "synq_fast_export"
_PARTS = frozenset({"getitem", "chunk", "split", "narrow", "select", "tensor_split", "unbind"})


@torch.library.custom_op(f"{_NAMESPACE}::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: float, zero_point: int, highest: int) -> Tensor:
    """QuantizeLinear, a clip to ``highest``, and DequantizeLinear."""
    codes = torch.round(x / scale).clamp(-zero_point, highest - zero_point)
    return codes * scale


@torch.library.custom_op(f"{_NAMESPACE}::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """DequantizeLinear of codes (C, ...) with a scale (C,); ``zero_point`` (C,) is all 0."""
    return codes.float() * scale.view(-1, *(1,) * (codes.dim() - 1))


@torch.library.custom_op(f"{_NAMESPACE}::global_average", mutates_args=())
def global_average(x: Tensor) -> Tensor:
    """GlobalAveragePool of (B, C, H, W): (B, C, 1, 1)."""
    return x.mean((2, 3), keepdim=True)


@quantize_dequantize.register_fake
def _(x: Tensor, scale: float, zero_point: int, highest: int) -> Tensor:
    return torch.empty_like(x)


@dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@global_average.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:2], 1, 1))


QUANTIZE_DEQUANTIZE = torch.ops.synq_fast_export.quantize_dequantize.default
DEQUANTIZE = torch.ops.synq_fast_export.dequantize.default
GLOBAL_AVERAGE = torch.ops.synq_fast_export.global_average.default


class _Quantizer(nn.Module):
    def __init__(self, scale: float, zero_point: int, highest: int) -> None:
        super().__init__()
        self.scale, self.zero_point, self.highest = scale, zero_point, highest

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = QUANTIZE_DEQUANTIZE(x, self.scale, self.zero_point, self.highest)
        return y


class _HeadQuantizers(nn.Module):
    """Heads are quantized one by one: grids along a dimension of an activation are taken by few."""

    def __init__(self, quantizers: Sequence[_Quantizer]) -> None:
        super().__init__()
        self.of = nn.ModuleList(quantizers)

    def forward(self, x: Tensor) -> Tensor:
        heads = [quantizer(part) for quantizer, part in zip(self.of, x.unbind(1), strict=True)]
        return torch.stack(heads, 1)


def _exported(quantizer: FrozenQuantizer) -> nn.Module:
    pairs = zip(quantizer.scale.flatten().tolist(), quantizer.zero_point.flatten(), strict=True)
    made = [_Quantizer(scale, int(zero), quantizer.highest) for scale, zero in pairs]
    return made[0] if quantizer.is_whole else _HeadQuantizers(made)


class _Layer(nn.Module):
    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bias: Tensor
    bias_scale: Tensor
    bias_zero_point: Tensor

    def __init__(self, layer: FrozenLayer, target: Target) -> None:
        super().__init__()
        # Hidden, so that what is not exported is not searched for tensors.
        self._layer = (layer,)
        self.as_matrices = target.joins_late and isinstance(layer, FrozenLinear)
        self.integer_bias = target.integer_bias and layer.input_scale is not None
        # In another memory format the exporter writes strides down, which runtimes read wrongly.
        self.register_buffer("codes", layer.codes().contiguous())
        self.register_buffer("scale", layer.scale)
        # ONNX Runtime takes a Gemm for quantized only where its zero points are given.
        self.register_buffer("zero_point", torch.zeros_like(layer.scale, dtype=torch.int8))
        self.register_buffer("bias", layer.bias if self.integer_bias else layer.float_bias())
        if self.integer_bias and layer.input_scale is not None:
            self.register_buffer("bias_scale", layer.input_scale * layer.scale)
            self.register_buffer("bias_zero_point", torch.zeros_like(layer.bias))

    def forward(self, x: Tensor) -> Tensor:
        (layer,) = self._layer
        bias = self.bias
        if self.integer_bias:
            bias = DEQUANTIZE(bias, self.bias_scale, self.bias_zero_point)
        weight = DEQUANTIZE(self.codes, self.scale, self.zero_point)
        if self.as_matrices and x.dim() > 2:
            rows = layer.product(x.flatten(0, -2), weight, bias)
            y: Tensor = rows.unflatten(0, x.shape[:-1])
            return y
        return layer.product(x, weight, bias)


class _Normalized(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def qdq_form(
    frozen: fx.GraphModule,
    target: Target,
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> fx.GraphModule:
    """The network that is exported.

    A ReLU or ReLU6 that the grid behind it implies is left out: in floating point it would stay
    between a layer and its quantizer, which runtimes then do not join.

    Args:
        frozen: a result of ``freeze``; stays as it is.
        target: the runtime that it is for.
        normalization: mean and deviation of each channel, to be part of the network; it then takes
                images on a 0..1 scale.

    Raises:
        ModelError: the target cannot hold an activation.
    """
    result = copied(frozen)
    for node in list(result.graph.nodes):
        module = called_module(frozen, node)
        if isinstance(module, FrozenQuantizer):
            for zero_point in module.zero_point.flatten().tolist():
                target.shift(str(node.target), module.bits, zero_point)
            result.add_submodule(str(node.target), _exported(module))
        elif isinstance(module, FrozenLayer):
            result.add_submodule(str(node.target), _Layer(module, target))
            if target.joins_late and module.input_scale is not None:
                _quantize_again(frozen, result, node)
    for node in list(result.graph.nodes):
        bound = relu_bound(result, node)
        if bound is not None and all(_implies(result, user, bound) for user in node.users):
            node.replace_all_uses_with(node.all_input_nodes[0])
            result.graph.erase_node(node)
        elif _is_global_average(result, node):
            node.op, node.target = "call_function", GLOBAL_AVERAGE
            node.args, node.kwargs = (node.all_input_nodes[0],), {}
    if normalization is not None:
        _normalize(result, *normalization)
    result.delete_all_unused_submodules()
    result.graph.lint()
    result.recompile()
    return result


def _quantize_again(frozen: fx.GraphModule, result: fx.GraphModule, node: fx.Node) -> None:
    """Put a layer's input on its grid once more, if it is a part of a value: it stays the same.

    Whatever else moves values, ONNX Runtime itself moves to the other side of the quantizer.
    """
    (source,) = node.all_input_nodes
    if operation(result, source) not in _PARTS:
        return
    quantizer = next(
        module
        for made in origins(result, source)
        if isinstance(module := called_module(frozen, made), FrozenQuantizer)
    )
    name = f"quantize_input_of_{node.name}"
    result.add_submodule(name, _exported(quantizer))
    with result.graph.inserting_before(node):
        node.replace_input_with(source, result.graph.call_module(name, (source,)))


def quantizers_at(network: fx.GraphModule, node: fx.Node) -> int:
    """How many quantizers a node of a result of ``qdq_form`` is: one, or one for each head."""
    module = called_module(network, node)
    if isinstance(module, _HeadQuantizers):
        return len(module.of)
    return int(isinstance(module, _Quantizer))


def _implies(module: fx.GraphModule, reader: fx.Node, bound: float) -> bool:
    """Whether a quantizer clamps its input as a ReLU that ends at ``bound`` does."""
    quantizer = called_module(module, reader)
    if not isinstance(quantizer, _Quantizer) or quantizer.zero_point != 0:
        return False
    # What lies between the last code and the bound goes to the last code either way.
    return bound == math.inf or (quantizer.highest - 0.5) * quantizer.scale <= bound


def _is_global_average(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node averages each channel to one pixel, which a reduction would not do fast."""
    called = called_module(module, node)
    size: object = None
    if isinstance(called, nn.AdaptiveAvgPool2d):
        size = called.output_size
    elif node.op == "call_function" and node.target is functional.adaptive_avg_pool2d:
        size = node.kwargs.get("output_size", node.args[1] if len(node.args) > 1 else None)
    else:
        return False
    return size in (1, (1, 1), [1, 1])


def _normalize(module: fx.GraphModule, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    image = next(n for n in module.graph.nodes if n.op == "placeholder")
    values = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (mean, std))
    module.add_submodule("normalization", _Normalized(*values))
    with module.graph.inserting_after(image):
        normalized = module.graph.call_module("normalization", (image,))
    image.replace_all_uses_with(normalized, delete_user_cb=lambda user: user is not normalized)
