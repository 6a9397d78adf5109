"""What each quantizer of a network costs at each width, one at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx

from synq_fast.errors import ModelError
from synq_fast.graph import called_module, shape_of
from synq_fast.graph.nodes import TRACED_IMAGES
from synq_fast.quant.activations import ActivationQuantizer, bypassing
from synq_fast.quant.bits import WIDTHS
from synq_fast.quant.layers import WeightQuantized
from synq_fast.quant.widths import reads_image

WEIGHTS, ACTIVATIONS, IMAGE = "weights", "activations", "image"


@dataclass(frozen=True)
class Part:
    """A quantizer of a network."""

    name: str
    """Of the layer whose weights it quantizes, or its own where it quantizes activations."""
    kind: str
    """``weights``, ``activations``, or ``image`` for the activations that are the image."""
    size: int
    """Weights of the layer, or elements of the activation of one image."""


@dataclass(frozen=True)
class Measured(Part):
    """A quantizer and what it costs."""

    losses: Mapping[int, float]
    """Mean KL(float || quantized) of the logits in nats by width, everything else in float."""


@dataclass(frozen=True)
class Sensitivity:
    """What every quantizer of a network costs at every width.

    As ZeroQ measures it (arXiv 2001.00281), of activations too. The rest of the network is in
    floating point: beside quantizers at 8 bits each would be charged for their errors as well. The
    errors of different quantizers are nearly independent, so that small ones add up; at three bits
    and below all of them together cost more than the sum, which then only ranks choices.
    """

    network: str
    recipe: str
    seed: int
    images: int
    """Synthetic images that the divergence is the mean of."""
    quantizers: tuple[Measured, ...]
    """In the order of the network; those of weights before those of activations."""

    def of(self, kind: str) -> list[Measured]:
        """The quantizers of a kind."""
        return [each for each in self.quantizers if each.kind == kind]

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON's values; widths become texts."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    def table(self) -> str:
        """A row of each quantizer as Markdown."""
        lines = [
            f"{self.network}, {self.recipe}: KL divergence from the float logits in nats, one "
            f"quantizer at a time, on {self.images} synthetic images (seed {self.seed})",
            "",
            f"| quantizer | of | elements | {' | '.join(f'{b} bits' for b in WIDTHS)} |",
            "|---|---|---|" + "---|" * len(WIDTHS),
        ]
        for each in self.quantizers:
            losses = [f"{each.losses[b]:.2e}" if b in each.losses else "-" for b in WIDTHS]
            lines.append(f"| {each.name} | {each.kind} | {each.size} | {' | '.join(losses)} |")
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        """The table."""
        return self.table()


def parts_of(student: fx.GraphModule) -> list[Part]:
    """The quantizers of a quantized copy in the order of its graph, those of weights first.

    Raises:
        ModelError: the size of an activation is unknown.
    """
    weights: dict[str, Part] = {}
    activations: list[Part] = []
    for node in student.graph.nodes:
        name = str(node.target)
        module: object = called_module(student, node)
        if isinstance(module, WeightQuantized):
            weights[name] = Part(name, WEIGHTS, module.weight.numel())
        elif isinstance(module, ActivationQuantizer):
            shape = shape_of(node)
            if shape is None:
                raise ModelError(f"tracing has not seen the size of what {name} quantizes")
            kind = IMAGE if reads_image(node) else ACTIVATIONS
            activations.append(Part(name, kind, math.prod(shape) // TRACED_IMAGES))
    return [*weights.values(), *activations]


@contextmanager
def alone(student: fx.GraphModule, part: Part) -> Iterator[None]:
    """Let one quantizer of a student work inside the block, everything else in floating point."""
    module = student.get_submodule(part.name)
    with bypassing(student):
        if isinstance(module, ActivationQuantizer):
            module.bypass = False
        elif isinstance(module, WeightQuantized):
            module.hold(module.derive())
        yield


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(float || quantized) of each image (B,) in nats, float64, from logits (B, classes)."""
    expected, found = (torch.log_softmax(x.double().flatten(1), 1) for x in (reference, logits))
    return (expected.exp() * (expected - found)).sum(1)
