"""Where the float and the quantized network look, and how alike that is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from synq_fast import ops
from synq_fast.graph.taps import Tapped
from synq_fast.quant import held_weights

_AT_ONCE = 32
MAP_KINDS = ("grad_cam", "grad_cam_plus_plus")
"""The ops that make maps from activations and gradients."""


@dataclass(frozen=True)
class Maps:
    """Class activation maps of both networks on the same images."""

    node: str
    """Where they are read."""
    images: Tensor
    """(N, C, H, W) on a scale from 0 to 1, not clipped."""
    labels: Tensor
    """(N,) the class whose map it is: the float network's strongest."""
    same: Tensor
    """(N,) whether the quantized network names that class too; bool."""
    float_maps: Tensor
    """(N, H, W) in [0, 1]."""
    quantized_maps: Tensor
    similarity: Tensor
    """(N,) cosine of both; NaN where one of them is zero everywhere."""


def class_maps(
    network: fx.GraphModule,
    node: str,
    images: Tensor,
    classes: Tensor,
    kind: str = "grad_cam",
) -> Tensor:
    """Maps (N, H, W) of images for given classes (N,), at a node; weights may be held.

    Args:
        network: whose maps.
        node: where activations and gradients are read.
        images: (N, C, H, W) as the network takes them.
        classes: (N,) int64.
        kind: one of ``MAP_KINDS``.
    """
    tapped = Tapped(network, cam=node)
    found = []
    with torch.enable_grad():
        for part, wanted in zip(images.split(_AT_ONCE), classes.split(_AT_ONCE), strict=True):
            view = tapped(part)
            assert view.cam_activation is not None
            score = view.logits.gather(1, wanted[:, None])[:, 0]
            (gradient,) = torch.autograd.grad(score.sum(), view.cam_activation)
            size = part.shape[2], part.shape[3]
            activation = view.cam_activation.detach()
            if kind == "grad_cam_plus_plus":
                maps = ops.grad_cam_plus_plus(activation, gradient, score.detach(), size)
            else:
                maps = ops.grad_cam(activation, gradient, size)
            found.append(maps[:, 0].detach())
    return torch.cat(found)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of maps (N, H, W); NaN where one is zero everywhere."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    lengths: Tensor = a.norm(dim=1) * b.norm(dim=1)
    return ((a * b).sum(1) / lengths).float()


def compare_maps(
    teacher: fx.GraphModule,
    student: fx.GraphModule,
    node: str,
    images: Tensor,
    shown: Tensor,
    logits: tuple[Tensor, Tensor],
) -> Maps:
    """Maps of both networks for the class that the float one names.

    Args:
        teacher: the traced float network.
        student: the quantized one.
        node: where maps are read in both.
        images: (N, C, H, W) as the networks take them.
        shown: the same on a scale from 0 to 1.
        logits: of the teacher and of the student.
    """
    classes = logits[0].argmax(1)
    theirs = class_maps(teacher, node, images, classes)
    with held_weights(student):
        ours = class_maps(student, node, images, classes)
    same = logits[1].argmax(1) == classes
    return Maps(node, shown, classes, same, theirs, ours, cosine(theirs, ours))
