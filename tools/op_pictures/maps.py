"""Class activation maps of the embedded network on digits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor

from synq_fast import ops

from .canvas import FLOAT, curve, features_and_logits, image, label, one_of_each, panels

_CLASSES = (3, 5)
_LAYERS = ("layer1", "layer2", "layer3")


def _explained(layer: str) -> tuple[Tensor, Tensor, Tensor]:
    """Activations of a layer, the gradients of the digits' own class scores in them, the scores."""
    images = one_of_each(*_CLASSES).requires_grad_()
    activations, logits = features_and_logits(layer, images)
    scores = logits[torch.arange(len(_CLASSES)), list(_CLASSES)]
    gradients = torch.autograd.grad(scores.sum(), activations)[0]
    return activations.detach(), gradients, scores.detach()


def _overlays(cam: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Figure:
    """Each digit, then the map of each layer over it."""
    figure, axes = panels(2 * (1 + len(_LAYERS)), 1.1)
    pictures = one_of_each(*_CLASSES)[:, 0]
    maps = {layer: cam(*_explained(layer)) for layer in _LAYERS}
    for number, own in enumerate((axes[:4], axes[4:])):
        image(own[0], pictures[number], f"digit {_CLASSES[number]}")
        for panel, (layer, found) in zip(own[1:], maps.items(), strict=True):
            image(panel, pictures[number], layer)
            panel.imshow(
                found[number, 0].numpy(),
                cmap="inferno",
                vmin=0,
                vmax=1,
                alpha=0.7,
                interpolation="nearest",
            )
    return figure


def grad_cam() -> Figure:
    """Two digits and their maps from three layers laid over them.

    The later the layer, the coarser the map.
    """
    return _overlays(lambda a, g, _: ops.grad_cam(a, g, (16, 16)))


def grad_cam_plus_plus() -> Figure:
    """The same two digits with Grad-CAM++'s maps from three layers.

    Strokes are bright over more of their length than in those of Grad-CAM.
    """
    return _overlays(lambda a, g, score: ops.grad_cam_plus_plus(a, g, score, (16, 16)))


def layer_cam() -> Figure:
    """The same two digits with LayerCAM's maps from three layers.

    In early layers single places are bright, because each has a weight of its own.
    """
    return _overlays(lambda a, g, _: ops.layer_cam(a, g, (16, 16)))


def hires_cam() -> Figure:
    """The same two digits with HiResCAM's maps from three layers.

    They are near those of LayerCAM, with fewer bright places in the first layer.
    """
    return _overlays(lambda a, g, _: ops.hires_cam(a, g, (16, 16)))


def cam_alignment_loss() -> Figure:
    """The map of a digit from float activations, and that from activations of two bits.

    Beside them their squared difference, and the loss over the width of the activations, which
    falls towards zero.
    """
    figure, axes = panels(4, 1.9, [1, 1, 1, 1.8])
    activations, gradients, _ = _explained("layer2")
    target = ops.grad_cam(activations, gradients, (16, 16))
    rounded = {b: ops.fake_quantize_dynamic(activations, b)[0] for b in range(2, 9)}
    theirs = ops.grad_cam(rounded[2], gradients, (16, 16))
    shown = {"cmap": "inferno"}
    image(axes[0], target[0, 0], "target map", **shown)
    image(axes[1], theirs[0, 0], "map at 2 bits", **shown)
    image(axes[2], (theirs - target)[0, 0].square(), "squared difference", cmap="Blues", vmax=None)
    losses = [ops.cam_alignment_loss(x, gradients, target) for x in rounded.values()]
    curve(axes[3], torch.tensor(list(rounded)), torch.stack(losses), color=FLOAT, marker="o")
    axes[3].set_yscale("log")
    label(axes[3], "loss", "bits of the activations")
    return figure
