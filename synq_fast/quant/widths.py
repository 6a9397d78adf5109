"""The width of every quantizer of one network, as it is and as it is to be."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import fx

from synq_fast.errors import RecipeError
from synq_fast.graph import called_module
from synq_fast.quant.activations import ActivationQuantizer
from synq_fast.quant.bits import Site
from synq_fast.quant.layers import WeightQuantized

_LISTED, _SHOWN = 12, 3


@dataclass(frozen=True)
class Widths:
    """Bits of single quantizers; a ``Policy`` that puts another copy together in the same way."""

    weights: Mapping[str, int]
    """By the qualified name of the layer."""
    activations: Mapping[str, int]
    """By the name of the quantizer, ``quantize_`` and the value's."""

    def check(self, layers: Collection[str]) -> None:
        """Refuse layers without a width; see ``Policy``."""
        _find(self.weights, layers, "layers")

    def weight(self, site: Site) -> int:
        """Bits of a layer's weights."""
        return self.weights[site.name]

    def activation(self, name: str, readers: Iterable[Site]) -> int:
        """Bits of an activation quantizer, whoever reads it."""
        _find(self.activations, [name], "activation quantizers")
        return self.activations[name]

    def lines(self) -> list[str]:
        """Which quantizers have which width, where they do not all have the same."""
        return _lines("weights", self.weights) + _lines("activations", self.activations)


def widths_of(student: fx.GraphModule) -> Widths:
    """The widths of a quantized copy, in the order of its graph; without the image's."""
    weights: dict[str, int] = {}
    activations: dict[str, int] = {}
    for node in student.graph.nodes:
        module: object = called_module(student, node)
        if isinstance(module, WeightQuantized):
            weights[str(node.target)] = module.weight_bits
        elif isinstance(module, ActivationQuantizer) and not reads_image(node):
            activations[str(node.target)] = module.bits
    return Widths(weights, activations)


def reads_image(quantizer: fx.Node) -> bool:
    """Whether what a quantizer's node reads is the image itself, whose width nothing decides."""
    return quantizer.all_input_nodes[0].op == "placeholder"


def _lines(kind: str, widths: Mapping[str, int]) -> list[str]:
    """The names at each width; of the most frequent one only how many there are."""
    at: dict[int, list[str]] = {}
    for name, bits in widths.items():
        at.setdefault(bits, []).append(name)
    if len(at) < 2:
        return []
    rest = max(at, key=lambda bits: (len(at[bits]), bits))
    named = [f"  {kind} at {b} bits: {_listed(at[b])}" for b in sorted(at) if b != rest]
    count = len(at[rest])
    return [
        *named,
        f"  {kind} at {rest} bits: {f'the other {count}' if count > 1 else at[rest][0]}",
    ]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _LISTED else ""
    return ", ".join(names[: _SHOWN if more else _LISTED]) + more


def _find(widths: Mapping[str, int], names: Collection[str], what: str) -> None:
    missing = [name for name in names if name not in widths]
    if missing:
        raise RecipeError(f"no width is known of the {what} {', '.join(missing)}")
