"""Taps: one forward that also returns the intermediate tensors that losses ask for."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from synq_fast.errors import ModelError
from synq_fast.graph import called_module, shape_of
from synq_fast.graph.compiling import compiled

_ADDITIONS = {operator.add, torch.add, torch.ops.aten.add.Tensor}


@dataclass(frozen=True)
class TapPoints:
    """Names of the graph nodes that losses read; the same names hold in teacher and student."""

    batch_norms: tuple[str, ...]
    """BatchNorm2d calls, in order of execution."""
    residual_bodies: tuple[str, ...]
    """Output of each residual body before its addition; without any, every BatchNorm output."""
    last_spatial_convolution: str | None
    """The last convolution whose output is larger than 1 x 1: where the CAM is read."""


def is_addition(node: fx.Node) -> bool:
    """Whether a node gives the plain sum of two values: not scaled, not into another tensor."""
    adds = node.target in _ADDITIONS if node.op == "call_function" else node.target == "add"
    return bool(
        node.op in ("call_function", "call_method")
        and adds
        and len(node.args) == 2
        and node.kwargs.get("alpha", 1) == 1
        and node.kwargs.keys() <= {"alpha"}
    )


def find_tap_points(graph_module: fx.GraphModule, example: Tensor) -> TapPoints:
    """Locate the tap points of a traced convolutional network.

    Args:
        graph_module: the traced float model.
        example: images (B, C, H, W) of the model's input size; values do not matter.
    """
    depth: dict[fx.Node, int] = {}
    norms, bodies, convolutions = [], [], []
    for node in graph_module.graph.nodes:
        kind = type(called_module(graph_module, node))
        is_convolution = kind is nn.Conv2d
        operands = node.all_input_nodes
        depth[node] = max((depth[operand] for operand in operands), default=0) + is_convolution
        if kind is nn.BatchNorm2d:
            norms.append(node.name)
        shape = shape_of(node)
        if is_convolution and shape is not None and math.prod(shape[2:]) > 1:
            convolutions.append(node.name)
        if is_addition(node) and len(operands) == 2:
            # The body is the branch with more convolutions behind it than the shortcut.
            body = max(operands, key=depth.__getitem__)
            if type(called_module(graph_module, body)) in (nn.BatchNorm2d, nn.Conv2d):
                bodies.append(body.name)
    # One branch may be added to several values.
    features = tuple(dict.fromkeys(bodies or norms))
    # An auxiliary head, or a branch that is detached, has no part in the logits' gradient.
    last = next((n for n in convolutions[::-1] if _decides(graph_module, n, example)), None)
    return TapPoints(tuple(norms), features, last)


@torch.enable_grad()
def _decides(graph_module: fx.GraphModule, name: str, example: Tensor) -> bool:
    """Whether the logits have a gradient at a node."""
    try:
        view = Tapped(graph_module, cam=name)(example)
        if not view.logits.requires_grad:
            return False
        assert view.cam_activation is not None
        total = view.logits.sum()
        (found,) = torch.autograd.grad(total, view.cam_activation, allow_unused=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"the model cannot be differentiated: {reason}") from error
    return found is not None


def head_start(x: Tensor) -> Tensor:
    """Begin a gradient graph at ``x`` where none exists, so that only the head is recorded."""
    return x if x.requires_grad else x.detach().requires_grad_()


@dataclass(frozen=True)
class View:
    """What one forward pass showed."""

    logits: Tensor
    """(B, classes)"""
    features: tuple[Tensor, ...] = ()
    """The values that were asked for: channel energies (B, C), or activations (B, C, H, W)."""
    cam_activation: Tensor | None = None
    """Output of the last spatial convolution (B, C, H, W), part of the logits' graph."""


class Tapped:
    """A traced model that returns its logits together with named intermediate tensors."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        features: Sequence[str] = (),
        cam: str | None = None,
        *,
        compile: bool = False,
    ) -> None:
        """Tap the outputs of the named nodes; parameters stay shared with ``graph_module``.

        With ``compile`` the passes run through ``torch.compile``.
        """
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        output = graph.graph_copy(graph_module.graph, copies)
        by_name = {original.name: copied for original, copied in copies.items()}
        missing = [name for name in (*features, cam) if name is not None and name not in by_name]
        if missing:
            raise ModelError(f"the traced model has no nodes named {', '.join(missing)}")
        if cam is not None:
            node = by_name[cam]
            with graph.inserting_after(node):
                start = graph.call_function(head_start, (node,))
            node.replace_all_uses_with(start, delete_user_cb=lambda user: user is not start)
            by_name[cam] = start
        graph.output((output, [by_name[n] for n in features], by_name[cam] if cam else None))
        self.module = fx.GraphModule(graph_module, graph)
        self.module.train(graph_module.training)
        self._forward: Callable[..., Any] = self.module
        if compile:
            self._forward = compiled(self.module, by_name[cam].name if cam else None)

    def __call__(self, images: Tensor) -> View:
        """Run the model on images (B, C, H, W)."""
        logits, features, cam_activation = self._forward(images)
        return View(logits, tuple(features), cam_activation)
