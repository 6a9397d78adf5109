"""From a fake-quantized network to the integers that runtimes compute with."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from synq_fast.deployment.frozen import FrozenConv2d, FrozenLayer, FrozenLinear, FrozenQuantizer
from synq_fast.errors import ModelError
from synq_fast.graph import called_module
from synq_fast.graph.nodes import copied
from synq_fast.quant.activations import ActivationQuantizer
from synq_fast.quant.fusion import FrozenNorm
from synq_fast.quant.grid import origins
from synq_fast.quant.layers import QuantizedConv2d, QuantizedLinear, WeightQuantized

_LARGEST = 127
_HALF_RANGE = 63
_LARGEST_BIAS = 2.0**30
"""Half of int32, so that the other half holds the sum that the bias is added to."""


@torch.no_grad()
def freeze(
    student: nn.Module,
    *,
    reduce_range: bool = False,
    layer_inputs_only: bool = False,
    strict: bool = True,
) -> fx.GraphModule:
    """The integer network of a fake-quantized one: what exported files and packed files hold.

    BatchNorms behind convolutions become part of their scales, weights become codes of int8 with
    zero point 0, biases integers of 32 bits. Names of nodes stay. The function differs from the
    fake-quantized one in roundings alone: biases lie on their grids, and values within a rounding
    of the middle between two codes may take the other.

    Args:
        student: a result of ``quantize`` or ``load``; stays as it is.
        reduce_range: keep codes of weights within -63 to 63 where they are read with more than
            4 bits, so that x86 processors without VNNI instructions do not saturate.
        layer_inputs_only: leave out the quantizers of values that no quantized layer multiplies,
            such as the outputs of convolutions that feed sums.
        strict: refuse what integers cannot hold; without it only the structure is right, for a
            network whose numbers are still to come.

    Raises:
        ModelError: it is no quantized network; a grid has no room for zero, or weights do not fit
            int8; says what to quantize with instead.
    """
    if not isinstance(student, fx.GraphModule) or "placement" not in student.meta:
        raise ModelError(
            f"{type(student).__name__} is no model that synq-fast quantized; pass result.model, "
            f"what synq_fast.load returned, or the path of a saved model"
        )
    result = copied(student)
    result.meta.update(student.meta)
    quantizers = {
        node: _quantizer(node, module, strict)
        for node in result.graph.nodes
        if isinstance(module := called_module(student, node), ActivationQuantizer)
    }
    called: dict[str, int] = {}
    for node in list(result.graph.nodes):
        layer: object = called_module(student, node)
        if not isinstance(layer, WeightQuantized):
            continue
        norm = _norm_behind(student, result, node)
        name = str(node.target)
        called[name] = called.get(name, 0) + 1
        if called[name] > 1:
            name = f"{name}_call_{called[name]}"
        grid = _grid_of_input(result, node, quantizers)
        made = _layer(name, layer, norm[1] if norm else None, grid, reduce_range, strict)
        result.add_submodule(name, made)
        node.target = name
        if norm is not None:
            (reader,) = node.users
            reader.replace_all_uses_with(node)
            result.graph.erase_node(reader)
            # Tools that follow a value find it under the name of what gave it.
            node.name = reader.name
    if layer_inputs_only:
        read = {grid for layer in _integer_inputs(result) for grid in origins(result, layer)}
        for node in [n for n in quantizers if n not in read]:
            node.replace_all_uses_with(node.all_input_nodes[0])
            result.graph.erase_node(node)
            del quantizers[node]
    for node, quantizer in quantizers.items():
        result.add_submodule(str(node.target), quantizer)
    result.delete_all_unused_submodules()
    result.graph.lint()
    result.recompile()
    for layer in frozen_layers(result).values():
        layer.prepare()
    return result.eval().requires_grad_(False)


def is_frozen(network: nn.Module) -> bool:
    """Whether a network is a result of ``freeze``."""
    return any(isinstance(module, FrozenLayer) for module in network.modules())


def frozen_layers(network: fx.GraphModule) -> dict[str, FrozenLayer]:
    """The frozen layers of a network by name, in the order in which they are called."""
    modules = ((str(n.target), called_module(network, n)) for n in network.graph.nodes)
    return {name: module for name, module in modules if isinstance(module, FrozenLayer)}


def _integer_inputs(network: fx.GraphModule) -> list[fx.Node]:
    """What the integer layers of a network read."""
    return [
        node.all_input_nodes[0]
        for node in network.graph.nodes
        if isinstance(module := called_module(network, node), FrozenLayer)
        and module.input_scale is not None
    ]


def _quantizer(node: fx.Node, quantizer: ActivationQuantizer, strict: bool) -> FrozenQuantizer:
    grid = quantizer.grid()
    zero_point = -(grid.zero_point + grid.low)
    inside = (zero_point >= 0) & (zero_point <= grid.high - grid.low)
    if strict and not bool(inside.all()):
        low, high = float(quantizer.range_min.min()), float(quantizer.range_max.max())
        raise ModelError(
            f"{node.target} has the range {low:.4g} to {high:.4g}, which does not hold zero: "
            f"integer runtimes pad with zero and cannot give it out. Quantize with "
            f"quantization.placement = integer, which widens such ranges"
        )
    return FrozenQuantizer(1 / grid.scale, zero_point, quantizer.bits)


def _norm_behind(
    student: fx.GraphModule, result: fx.GraphModule, node: fx.Node
) -> tuple[fx.Node, nn.BatchNorm2d] | None:
    """The frozen BatchNorm that alone reads a convolution."""
    if len(node.users) != 1:
        return None
    (reader,) = node.users
    norm = called_module(student, reader)
    convolves = isinstance(called_module(student, node), QuantizedConv2d)
    if convolves and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
        return reader, norm
    return None


def _grid_of_input(
    result: fx.GraphModule, node: fx.Node, quantizers: dict[fx.Node, FrozenQuantizer]
) -> FrozenQuantizer | None:
    """The one grid that all of a layer's input lies on."""
    made_by = list(origins(result, node.all_input_nodes[0]))
    if not made_by or any(n not in quantizers for n in made_by):
        return None
    first, *others = (quantizers[n] for n in made_by)
    same = all(
        torch.equal(first.scale, o.scale)
        and torch.equal(first.zero_point, o.zero_point)
        and first.bits == o.bits
        for o in others
    )
    return first if same else None


def _layer(
    name: str,
    layer: WeightQuantized,
    norm: nn.BatchNorm2d | None,
    grid: FrozenQuantizer | None,
    reduce_range: bool,
    strict: bool,
) -> FrozenLayer:
    stored, zero_point, scale = _codes(layer)
    channels = len(scale)
    factor = torch.ones(channels, dtype=torch.float64, device=scale.device)
    shift = torch.zeros_like(factor)
    if norm is not None:
        factor, shift = (v.detach().double() for v in FrozenNorm(norm).derive())
    own = getattr(layer, "bias", None)
    if own is not None:
        shift = shift + own.detach().double() * factor
    numbers = stored.double() + zero_point.view(-1, *(1,) * (stored.dim() - 1))
    largest = numbers.abs().flatten(1).amax(1) if stored[:1].numel() else torch.zeros_like(factor)
    room = _LARGEST
    if reduce_range and (grid is None or grid.bits > 4):
        room = _HALF_RANGE
    if strict and bool((largest > room).any()):
        raise ModelError(_too_large(name, layer, int(largest.max()), room))
    dead = factor == 0
    factor = torch.where(dead, torch.ones_like(factor), factor)
    multiplier = torch.floor(room / largest.clamp_min(1)).clamp_max(room) * factor.sign()
    scale = scale * factor / multiplier
    multiplier = torch.where(dead, torch.zeros_like(multiplier), multiplier)
    if grid is not None:
        stored, zero_point, scale = _with_room_for_bias(
            stored, zero_point, scale, shift, numbers, multiplier, float(grid.scale)
        )
        steps = torch.round(shift / (grid.scale.double() * scale.float().double()))
        bias: Tensor = steps.to(torch.int32)
    else:
        bias = shift.float()
    parts = (
        layer.weight_bits,
        stored,
        zero_point,
        multiplier,
        scale,
        bias,
        None if grid is None else grid.scale.clone(),
        0 if grid is None else grid.highest,
    )
    if isinstance(layer, QuantizedConv2d):
        return FrozenConv2d(layer, *parts)
    assert isinstance(layer, QuantizedLinear)
    return FrozenLinear(*parts)


def _codes(layer: WeightQuantized) -> tuple[Tensor, Tensor, Tensor]:
    """Signed codes, zero points and steps (float64) of a layer's weights.

    They are read off the weights that the layer computes with, whatever rounded them.
    """
    grid = layer.grid()
    of_channel = (-1, *(1,) * (layer.weight.dim() - 1))
    zero = grid.zero_point.view(of_channel).double()
    weight = layer.quantized_weight().detach().double()
    codes = torch.round(weight * grid.scale.view(of_channel).double() - zero)
    codes = codes.clamp(grid.low, grid.high)
    return codes.to(torch.int8), grid.zero_point.double(), 1 / grid.scale.double()


def _with_room_for_bias(
    stored: Tensor,
    zero_point: Tensor,
    scale: Tensor,
    shift: Tensor,
    numbers: Tensor,
    multiplier: Tensor,
    input_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Wider steps where the bias would leave int32: of channels with next to no weights."""
    smallest = shift.abs() / (_LARGEST_BIAS * input_scale)
    # Scales that float32 cannot hold are none, and a channel without weights may have any.
    smallest = smallest.clamp_min(torch.finfo(torch.float32).tiny)
    narrow = scale < smallest
    if not bool(narrow.any()):
        return stored, zero_point, scale
    wanted = torch.where(narrow, smallest, scale)
    of_channel = (-1, *(1,) * (stored.dim() - 1))
    share = (scale / wanted).view(of_channel)
    moved = torch.round(numbers * multiplier.view(of_channel) * share)
    safe = torch.where(multiplier == 0, torch.ones_like(multiplier), multiplier)
    again = torch.round(moved / safe.view(of_channel))
    rows = narrow.view(of_channel)
    stored = torch.where(rows, again, stored.double()).to(torch.int8)
    zero_point = torch.where(narrow, torch.zeros_like(zero_point), zero_point)
    return stored, zero_point, wanted


def _too_large(name: str, layer: WeightQuantized, largest: int, room: int) -> str:
    given = f"{name}: codes of its {layer.weight_bits}-bit weights reach {largest}"
    if room == _HALF_RANGE:
        return (
            f"{given}, and without VNNI instructions sums saturate beyond {room}; quantize its "
            f"weights to 6 bits or fewer, or export without reduce_range for processors with them"
        )
    if layer.weight_bits == 8 and not layer.is_symmetric:
        return (
            f"{given} above their zero point, beyond int8's {_LARGEST}; 8-bit weights need "
            f"symmetric grids: quantize with quantization.weight_scheme = symmetric, or with "
            f"quantization.placement = integer, which has them at 8 bits"
        )
    return (
        f"{given} above their zero point, beyond int8's {_LARGEST}: some channel has weights of "
        f"one sign only; quantize with quantization.weight_scheme = symmetric"
    )
