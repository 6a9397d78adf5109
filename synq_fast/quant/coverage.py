"""How much of a network is quantized, and why the rest is not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import fx

from synq_fast.graph import called_module
from synq_fast.quant.activations import ActivationQuantizer
from synq_fast.quant.auto_placement import image_nodes
from synq_fast.quant.grid import AVERAGES, handed_on, operation, origins
from synq_fast.quant.weight_layers import WeightLayer, weight_layers
from synq_fast.quant.widths import Widths, widths_of

_SHOWN = 3


@dataclass(frozen=True)
class FloatPart:
    """Something that stays in floating point."""

    name: str
    """Qualified name of the layer."""
    reason: str


@dataclass(frozen=True)
class Coverage:
    """Weight layers and layer inputs of a network, those that are quantized and the rest.

    A weight layer is counted once, each of its inputs at every call. An input is quantized where
    every value in it lies on the grid of a quantizer: it comes from quantizers alone, through
    operations that only move, select or join values (pooling by maximum, reshaping, slicing,
    concatenation, ReLU, padding by zero). The joined parts may lie on different grids. An average
    of quantized values is on no grid.
    """

    placement: str
    """Where the activation quantizers are."""
    weights: int
    """Weight layers with quantized weights."""
    weights_of: int
    """All weight layers that the network calls."""
    inputs: int
    """Layer inputs that are quantized."""
    inputs_of: int
    """All layer inputs, at every call."""
    float_weights: tuple[FloatPart, ...]
    """The other weight layers."""
    float_inputs: tuple[FloatPart, ...]
    """The layers whose input is in floating point, once for each call."""
    widths: Widths | None = None
    """Bits of every quantizer but the image's; None where they are still to be found."""

    def lines(self) -> list[str]:
        """What a run prints: the numbers, the rest by reason, widths where they differ."""
        placement = f" (placement {self.placement})" if self.placement else ""
        head = (
            f"quantized: {self.weights} of {self.weights_of} weight layers, "
            f"{self.inputs} of {self.inputs_of} layer inputs{placement}"
        )
        inside = {part.reason for part in self.float_weights}
        inputs = [part for part in self.float_inputs if part.reason not in inside]
        rest = _by_reason("weight in float", self.float_weights) + _by_reason(
            "input in float", inputs
        )
        return [head, *rest, *(self.widths.lines() if self.widths else ())]

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON's values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    def __str__(self) -> str:
        return "\n".join(self.lines())


def coverage_of(student: fx.GraphModule) -> Coverage:
    """Count what is quantized in a result of ``quantized_copy``."""
    placement = str(student.meta.get("placement", ""))
    image = image_nodes(student)
    layers = list(weight_layers(student, student.meta.get("leaves", ())))
    # The same layer may be quantized at one call and not at another.
    reasons: dict[str, str | None] = {}
    for layer in layers:
        reasons[layer.name] = reasons.get(layer.name) or layer.reason
    float_weights = tuple(FloatPart(name, reason) for name, reason in reasons.items() if reason)
    inputs = [
        FloatPart(layer.name, reason)
        for layer in layers
        for reason in _input_reasons(student, layer, placement, image)
    ]
    float_inputs = tuple(part for part in inputs if part.reason)
    return Coverage(
        placement,
        len(reasons) - len(float_weights),
        len(reasons),
        len(inputs) - len(float_inputs),
        len(inputs),
        float_weights,
        float_inputs,
        widths_of(student),
    )


def _input_reasons(
    student: fx.GraphModule, layer: WeightLayer, placement: str, image: set[fx.Node]
) -> list[str]:
    """Why each input of a layer is in floating point; empty texts where it is quantized."""
    if not layer.inputs:
        return [layer.reason or ""]
    found = [_why_float(student, node, placement, image) for node in layer.inputs]
    # Placements look at quantized layers only, so the layer's own reason is its input's as well.
    return [layer.reason if reason and layer.reason else reason for reason in found]


def _why_float(student: fx.GraphModule, node: fx.Node, placement: str, image: set[fx.Node]) -> str:
    def is_quantizer(made: fx.Node) -> bool:
        return isinstance(called_module(student, made), ActivationQuantizer)

    made_by = list(origins(student, node))
    rest = [made for made in made_by if not is_quantizer(made)]
    if not rest:
        return ""
    part = "in part " if len(rest) < len(made_by) else ""
    first = rest[0]
    if first.op == "placeholder":
        return f"{part}the image"
    if first in image:
        return f"{part}computed from the image alone"
    name = operation(student, first).removeprefix("Quantized")
    if first.op == "get_attr":
        return f"{part}a parameter"
    if name in AVERAGES and all(is_quantizer(made) for made in origins(student, first, _averaged)):
        return f"{part}an average of quantized values, {name}"
    reach = f": placement {placement} does not reach it" if placement else ""
    return f"{part}follows {name}{reach}"


def _averaged(student: fx.GraphModule, node: fx.Node) -> list[fx.Node] | None:
    if operation(student, node) in AVERAGES:
        return node.all_input_nodes[:1]
    return handed_on(student, node)


def _by_reason(title: str, parts: Iterable[FloatPart]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for part in parts:
        groups.setdefault(part.reason, []).append(part.name)
    lines = []
    for reason, names in groups.items():
        names = list(dict.fromkeys(names))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append(f"  {title}: {', '.join(names[:_SHOWN])}{more} ({reason})")
    return lines
