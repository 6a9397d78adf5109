"""Swing convolution: strided convolutions that read a shifted input."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from synq_fast.graph.nodes import called_module, copied, shape_of
from synq_fast.runtime.memory import send

_REACH = 1


class Swing(nn.Module):
    """Shifts images by up to a pixel each way; what comes in is mirrored (Genie).

    The offset lies on the device, so that a recorded pass reads it anew.
    """

    offset: Tensor

    def __init__(self, device: torch.device) -> None:
        """Begin without a shift."""
        super().__init__()
        self.register_buffer("offset", torch.full((2,), _REACH, dtype=torch.int64, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), shifted by ``offset - 1``."""
        padded = functional.pad(x, (_REACH,) * 4, mode="reflect")
        rows, columns = (torch.arange(n, device=x.device) for n in x.shape[2:])
        shifted = padded.index_select(2, rows + self.offset[0])
        return shifted.index_select(3, columns + self.offset[1])

    def rest(self) -> None:
        """Shift nothing."""
        self.offset.fill_(_REACH)

    def draw(self, generator: torch.Generator) -> None:
        """Shift anew."""
        drawn = torch.randint(2 * _REACH + 1, (2,), generator=generator, device="cpu")
        self.offset.copy_(send(drawn, self.offset.device))


def swung(graph_module: fx.GraphModule) -> tuple[fx.GraphModule, tuple[Swing, ...]]:
    """A copy of a network, parameters shared, and what shifts the inputs of strided convolutions.

    Inputs of one pixel a side cannot be mirrored and stay.
    """
    copy = copied(graph_module)
    swings: list[Swing] = []
    for node in list(copy.graph.nodes):
        module = called_module(copy, node)
        if not isinstance(module, nn.Conv2d) or set(module.stride) == {1}:
            continue
        read = node.all_input_nodes[0]
        shape = shape_of(read)
        if shape is None or len(shape) != 4 or min(shape[2:]) <= _REACH:
            continue
        swing = Swing(module.weight.device)
        name = f"swing_{len(swings)}"
        copy.add_submodule(name, swing)
        with copy.graph.inserting_before(node):
            node.replace_input_with(read, copy.graph.call_module(name, (read,)))
        swings.append(swing)
    copy.recompile()
    copy.train(graph_module.training)
    return copy, tuple(swings)
