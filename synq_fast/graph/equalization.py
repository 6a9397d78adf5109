"""Channels that depthwise convolutions read, brought to one range by the layers around them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from synq_fast.graph.nodes import called_module, copied, own_modules, parameter_like, relu_bound

DEVIATIONS = 8.0
"""Standard deviations above a BatchNorm's mean in which a channel's values are taken to lie."""
_SMALLEST = 2.0**-10
_EQUALIZED = "equalized"


@dataclass(frozen=True)
class Pair:
    """A BatchNorm whose values a depthwise convolution alone reads, through a ReLU or directly."""

    norm: str
    """Qualified name of the module."""
    bound: float | None
    """Where the ReLU's values end: 6, infinity; None where there is no ReLU."""
    reader: str
    """Qualified name of the depthwise convolution."""


def equalizable(graph_module: fx.GraphModule) -> list[Pair]:
    """The pairs of a traced float network between which channels may be scaled, in order."""
    calls = Counter(
        str(n.target) for n in graph_module.graph.nodes if n.op in ("call_module", "get_attr")
    )
    owners = Counter(id(p) for _, p in graph_module.named_parameters(remove_duplicate=False))

    def is_own(node: fx.Node) -> bool:
        module = called_module(graph_module, node)
        tensors = () if module is None else tuple(module.parameters())
        held = (f"{node.target}.{name}" for name in ("weight", "bias"))
        read = calls[str(node.target)] > 1 or any(name in calls for name in held)
        return not read and all(owners[id(p)] == 1 for p in tensors)

    found = []
    for reader in graph_module.graph.nodes:
        if not _is_depthwise(called_module(graph_module, reader)):
            continue
        norm = reader.all_input_nodes[0]
        bound = relu_bound(graph_module, norm)
        sole = len(norm.users) == 1
        if bound is not None:
            norm = norm.all_input_nodes[0]
            sole = sole and len(norm.users) == 1
        module = called_module(graph_module, norm)
        scalable = type(module) is nn.BatchNorm2d and module.affine
        if sole and scalable and is_own(norm) and is_own(reader):
            found.append(Pair(str(norm.target), bound, str(reader.target)))
    return found


@torch.no_grad()
def equalized(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A copy whose depthwise convolutions read channels of one range.

    A BatchNorm's factors and summands are divided by what the weights of the depthwise convolution
    behind it are multiplied with, channel by channel, as cross-layer equalization does (Nagel et
    al., ICCV 2019, section 4.1). Each of these weights has a grid of its own, and each of these
    channels one weight kernel: quantizing the weights costs what it did, and one range serves all
    channels. The range of a channel is what its BatchNorm says, ``mean + DEVIATIONS * deviation``;
    no image is needed.

    The outputs are those of the network up to rounding behind ReLU. ReLU6 ends each channel where
    its range does if that is below 6: values beyond it are cut.

    Args:
        graph_module: a traced float network; stays as it is, and is the result where it has
            nothing to equalize.
    """
    pairs = equalizable(graph_module)
    if not pairs:
        return graph_module
    result = own_modules(copied(graph_module))
    result.meta.update(graph_module.meta)
    for pair in pairs:
        norm, reader = result.get_submodule(pair.norm), result.get_submodule(pair.reader)
        assert isinstance(norm, nn.BatchNorm2d) and isinstance(reader, nn.Conv2d)
        scale = channel_scales(norm.weight, norm.bias, pair.bound)
        norm.weight = parameter_like(norm.weight.double() / scale, norm.weight)
        norm.bias = parameter_like(norm.bias.double() / scale, norm.bias)
        each = scale.repeat_interleave(reader.out_channels // reader.in_channels)
        reader.weight = parameter_like(reader.weight * each[:, None, None, None], reader.weight)
    result.train(graph_module.training)
    result.meta[_EQUALIZED] = len(pairs)
    return result


def equalized_readers(graph_module: fx.GraphModule) -> int:
    """How many depthwise convolutions ``equalized`` has changed."""
    return int(graph_module.meta.get(_EQUALIZED, 0))


def channel_scales(deviation: Tensor, mean: Tensor, bound: float | None) -> Tensor:
    """Each channel's range over the widest that it may have, (C,) float64 from 2^-10 to 1.

    Args:
        deviation: (C,) of the values before the ReLU; the sign does not matter.
        mean: (C,) of the same.
        bound: where the ReLU's values end; None where there is none.
    """
    middle = mean.double().abs() if bound is None else mean.double()
    ceiling = middle + DEVIATIONS * deviation.double().abs()
    widest = ceiling.max() if bound is None or math.isinf(bound) else ceiling.new_tensor(bound)
    if not widest > 0:
        return torch.ones_like(ceiling)
    return (ceiling / widest).clamp(_SMALLEST, 1)


def _is_depthwise(module: nn.Module | None) -> bool:
    return type(module) is nn.Conv2d and 1 < module.groups == module.in_channels
