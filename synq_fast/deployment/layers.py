"""Where a deployed model loses: layer by layer, against the network without quantizers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, fx

from synq_fast.deployment.freezing import frozen_layers
from synq_fast.deployment.frozen import FrozenLayer, FrozenQuantizer
from synq_fast.deployment.report import LayerRow
from synq_fast.deployment.verification import node_values
from synq_fast.graph import called_module


@torch.no_grad()
def layer_rows(
    plain: fx.GraphModule,
    frozen: fx.GraphModule,
    codes: Mapping[str, float],
    images: Tensor,
) -> tuple[LayerRow, ...]:
    """Signal-to-noise of each layer, and the share of codes behind it that the file gives too.

    Args:
        plain: the network without quantizers, its nodes named as in ``frozen``.
        frozen: what ``freeze`` made of the quantized one.
        codes: of each quantizer, the share of codes that a file gives too; see ``Check``.
        images: (B, C, H, W).
    """
    layers = [n for n in frozen.graph.nodes if isinstance(called_module(frozen, n), FrozenLayer)]
    names = [node.name for node in layers]
    expected = node_values(plain, images, names)
    found = node_values(frozen, images, names)
    bits = {name: layer.bits for name, layer in frozen_layers(frozen).items()}
    return tuple(
        LayerRow(
            str(node.target),
            bits[str(node.target)],
            signal_to_noise(expected[node.name], found[node.name]),
            _behind(frozen, node, codes),
        )
        for node in layers
    )


def signal_to_noise(expected: Tensor, found: Tensor) -> float:
    """Power of a value over that of its error, in dB; infinite without an error."""
    noise = float((found.double() - expected.double()).square().mean())
    signal = float(expected.double().square().mean())
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)


def _behind(frozen: fx.GraphModule, node: fx.Node, codes: Mapping[str, float]) -> float | None:
    """Of the first quantizer behind a layer that the file holds."""
    waiting = list(node.users)
    while waiting:
        user = waiting.pop(0)
        if isinstance(called_module(frozen, user), FrozenQuantizer):
            return codes.get(user.name)
        waiting.extend(user.users)
    return None
