"""What quantization does to each layer: its numbers, its grid, what it loses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from synq_fast.graph import called_module, shape_of
from synq_fast.graph.taps import Tapped
from synq_fast.quant import ActivationQuantizer, held_weights, observing
from synq_fast.quant.activations import bypassing
from synq_fast.quant.grid import handed_on, origins
from synq_fast.quant.layers import WeightQuantized
from synq_fast.quant.sensitivity import alone, divergence, parts_of
from synq_fast.quant.weight_layers import weight_layers

_BINS = 72
_SAMPLED = 2**16
_AT_ONCE = 2**19
"""Values of the images whose activations are in memory together, of every layer."""


@dataclass(frozen=True)
class Histogram:
    """Shares of values between edges, and those of the values that the grid makes of them."""

    edges: Tensor
    """(B + 1,)"""
    shares: Tensor
    """(B,), of all values; float64."""
    levels: Tensor
    """(L,) the values of the grid, in the unit of ``edges``."""
    taken: Tensor
    """(L,) shares of the quantized values at each."""


@dataclass(frozen=True)
class WeightRow:
    """The weights of one layer."""

    name: str
    kind: str
    shape: tuple[int, ...]
    bits: int
    inputs: tuple[str, ...]
    """Names of the quantizers of what it reads."""
    noise_db: float | None
    """Signal-to-noise of the quantized weights beside the float network's; inf: the same."""
    output_db: float | None
    """Of the layer's output, quantized beside float, with all that happens before it."""
    divergence: float | None
    """KL of the logits in nats where these weights alone are rounded to nearest."""
    histogram: Histogram
    """In steps of each output channel's own grid."""

    @property
    def parameters(self) -> int:
        """How many weights."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes of the packed codes and of each channel's scale and zero point (4 and 1 bytes)."""
        return -(-self.parameters * self.bits // 8) + 5 * self.shape[0]

    @property
    def float_size(self) -> int:
        """Bytes in float32."""
        return 4 * self.parameters


@dataclass(frozen=True)
class ActivationRow:
    """An activation quantizer."""

    name: str
    bits: int
    readers: tuple[str, ...]
    """Layers and products that read it."""
    low: float
    """Ends of its grid."""
    high: float
    clipped: float
    """Share of the values outside."""
    noise_db: float
    """Signal-to-noise of what it gives beside what it gets, in the quantized network."""
    divergence: float | None
    """KL of the logits in nats where this quantizer alone works."""
    histogram: Histogram


@dataclass(frozen=True)
class Layers:
    """Every quantizer of a network."""

    images: int
    """Synthetic images that activations were seen on."""
    sensitivity_images: int
    weights: tuple[WeightRow, ...]
    activations: tuple[ActivationRow, ...]
    float_bytes: int
    """Of parameters that are not quantized: biases, norms, layers that stay in float."""


def decibels(signal: Tensor, noise: Tensor) -> float:
    """Ratio of the energies in dB; inf where there is no noise, NaN where there is neither."""
    s, n = (float(x.double().square().sum()) for x in (signal, noise))
    if n == 0:
        return math.inf if s else math.nan
    return 10 * math.log10(s / n) if s else -math.inf


@torch.no_grad()
def measure_layers(
    student: fx.GraphModule,
    images: Tensor,
    teacher: fx.GraphModule | None = None,
    sensitivities: Mapping[str, float] | None = None,
    sensitivity_images: int = 0,
) -> Layers:
    """Look at every quantizer.

    Args:
        student: the quantized network in evaluation mode.
        images: (N, C, H, W), filtered, as it was calibrated on.
        teacher: the traced float network; without it nothing is compared with float.
        sensitivities: what ``sensitivities`` found.
        sensitivity_images: on how many images.
    """
    found = sensitivities or {}
    leaves = student.meta.get("leaves", ())
    layers = {
        layer.name: layer
        for layer in weight_layers(student, leaves)
        if isinstance(_module(student, layer.name), WeightQuantized)
    }
    nodes = {layer.name: layer.call for layer in layers.values()}
    outputs = _output_decibels(teacher, student, nodes, images) if teacher is not None else {}
    weights = []
    for name, layer in layers.items():
        module: object = student.get_submodule(name)
        assert isinstance(module, WeightQuantized)
        theirs = module.weight if teacher is None else teacher.get_submodule(name).weight
        assert isinstance(theirs, Tensor)
        quantized = module.quantized_weight()
        weights.append(
            WeightRow(
                name,
                type(module).__name__.removeprefix("Quantized"),
                tuple(module.weight.shape),
                module.weight_bits,
                tuple(
                    str(made.target)
                    for read in layer.inputs
                    for made in origins(student, read)
                    if isinstance(called_module(student, made), ActivationQuantizer)
                ),
                None if teacher is None else decibels(theirs, theirs - quantized),
                outputs.get(name),
                found.get(name),
                _weight_histogram(module, theirs, quantized),
            )
        )
    activations = _activations(student, images, found)
    # Gains are a part of grids, whose bytes are counted there.
    packed = {f"{name}.{part}" for name in layers for part in ("weight", "gain")}
    rest = sum(4 * p.numel() for n, p in student.named_parameters() if n not in packed and p.dim())
    return Layers(len(images), sensitivity_images, tuple(weights), activations, rest)


@torch.no_grad()
def sensitivities(
    teacher: fx.GraphModule, student: fx.GraphModule, images: Tensor
) -> dict[str, float]:
    """What each quantizer costs alone at its width, KL(float || quantized) in nats by name.

    As ``synq_fast.sensitivity`` measures it: weights of the float network rounded to nearest,
    activation ranges observed in the float network, everything else in floating point.

    Args:
        teacher: the traced float network.
        student: its quantized copy, not calibrated and not trained; its ranges are set.
        images: (N, C, H, W), filtered.
    """
    with observing(student), bypassing(student):
        student(images)
    reference = teacher(images)
    found = {}
    for part in parts_of(student):
        with alone(student, part):
            found[part.name] = float(divergence(reference, student(images)).mean())
    return found


def _module(network: nn.Module, name: str) -> nn.Module | None:
    try:
        return network.get_submodule(name)
    except AttributeError:
        return None  # weights of a function have names of their own


def _output_decibels(
    teacher: fx.GraphModule, student: fx.GraphModule, nodes: Mapping[str, str], images: Tensor
) -> dict[str, float]:
    """Signal-to-noise of the outputs of layers, whose nodes have the same names in both."""
    names = list(nodes.values())
    theirs, ours = Tapped(teacher, names), Tapped(student, names)
    energies = torch.zeros(2, len(names), dtype=torch.float64)
    with held_weights(student):
        for part in images.split(max(1, _AT_ONCE // images[0].numel())):
            pairs = zip(theirs(part).features, ours(part).features, strict=True)
            for n, (x, y) in enumerate(pairs):
                energies[0, n] += x.double().square().sum().cpu()
                energies[1, n] += (x - y).double().square().sum().cpu()
    roots = energies.sqrt()
    return {name: decibels(*roots[:, n]) for n, name in enumerate(nodes)}


def _weight_histogram(layer: WeightQuantized, weight: Tensor, quantized: Tensor) -> Histogram:
    grid = layer.grid()
    shape = (-1, *(1 for _ in weight.shape[1:]))
    scale, zero = grid.scale.view(shape), grid.zero_point.view(shape)
    codes = (weight.float() * scale - zero).flatten()
    levels = torch.arange(grid.low, grid.high + 1, dtype=torch.float64)
    taken = (quantized.float() * scale - zero).flatten().round().double()
    # Far outliers would leave the grid a line.
    span = grid.high - grid.low
    low = max(float(codes.min()), grid.low - 0.75 * span)
    high = min(float(codes.max()), grid.high + 0.75 * span)
    low, high = min(low, grid.low - 0.5), max(high, grid.high + 0.5)
    return _histogram(codes, low, high, levels, taken)


def _histogram(
    values: Tensor, low: float, high: float, levels: Tensor, quantized: Tensor
) -> Histogram:
    """Values outside count in the first and the last bin."""
    edges = torch.linspace(low, high, _BINS + 1, dtype=torch.float64)
    inside = values.double().cpu().clamp(low, high)
    shares = torch.histogram(inside, edges).hist / max(1, values.numel())
    nearest = torch.bucketize(quantized.double().cpu(), (levels[1:] + levels[:-1]) / 2)
    taken = torch.bincount(nearest.flatten(), minlength=len(levels)) / max(1, quantized.numel())
    return Histogram(edges, shares, levels, taken)


class _Seen:
    """What one quantizer gets and gives."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0
        self.outside = self.count = 0
        self.values: list[Tensor] = []
        self.given: list[Tensor] = []

    def __call__(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(module, ActivationQuantizer)
        x, y = args[0].float(), output.float()
        shape = () if module.heads is None else (-1, 1, 1)
        low, high = (end.view(shape) for end in module.ends())
        self.signal += float(x.double().square().sum())
        self.noise += float((x - y).double().square().sum())
        self.outside += int(((x < low) | (x > high)).sum())
        self.count += x.numel()
        # Odd, so that it does not keep to some of the channels or columns.
        stride = x.numel() // _SAMPLED | 1
        self.values.append(x.flatten()[::stride].cpu())
        self.given.append(y.flatten()[::stride].cpu())


def _activations(
    student: fx.GraphModule, images: Tensor, found: Mapping[str, float]
) -> tuple[ActivationRow, ...]:
    named = {
        str(node.target): node
        for node in student.graph.nodes
        if isinstance(called_module(student, node), ActivationQuantizer)
    }
    seen = {name: _Seen() for name in named}
    handles = [student.get_submodule(n).register_forward_hook(s) for n, s in seen.items()]
    try:
        with held_weights(student):
            student(images)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(
        _activation_row(student, name, node, seen[name], found.get(name))
        for name, node in named.items()
    )


def _activation_row(
    student: fx.GraphModule, name: str, node: fx.Node, seen: _Seen, loss: float | None
) -> ActivationRow:
    quantizer: object = student.get_submodule(name)
    assert isinstance(quantizer, ActivationQuantizer)
    levels = quantizer.levels()
    values, given = torch.cat(seen.values), torch.cat(seen.given)
    low, high = float(levels[0]), float(levels[-1])
    reach = high - low
    edges = max(float(values.min()), low - reach), min(float(values.max()), high + reach)
    first, last = min(edges[0], low), max(edges[1], high)
    if not first < last:
        first, last = first - 0.5, last + 0.5
    noise = math.sqrt(seen.noise)
    return ActivationRow(
        name,
        quantizer.bits,
        tuple(dict.fromkeys(_readers(student, node))),
        low,
        high,
        seen.outside / max(1, seen.count),
        decibels(torch.tensor(math.sqrt(seen.signal)), torch.tensor(noise)),
        loss,
        _histogram(values, first, last, levels, given),
    )


def _readers(student: fx.GraphModule, quantizer: fx.Node) -> list[str]:
    """Who computes with a quantizer's values, behind what only moves them."""
    names = []
    for node in student.graph.nodes:
        if handed_on(student, node) is not None:
            continue
        if any(quantizer in origins(student, read) for read in node.all_input_nodes):
            module: object = called_module(student, node)
            if isinstance(module, WeightQuantized):
                names.append(str(node.target))
            elif module is None and shape_of(node) is not None:
                names.append(node.name)
    return names
