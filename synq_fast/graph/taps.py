"""Taps: one forward that also returns the intermediate tensors that losses ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, fx

from synq_fast.errors import ModelError
from synq_fast.graph.compiling import compiled
from synq_fast.graph.patches import as_map, from_map, is_layer_norm


@dataclass(frozen=True)
class Tap:
    """A value of a network that a loss reads."""

    node: str
    """Name of the node that gives it; the same in teacher and student."""
    kind: Literal["activation", "energy", "map"] = "activation"
    """The activation (B, C, H, W); its channel energies (B, C); or the activation as a part of the
    logits' graph, so that the logits have a gradient in it."""


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
    """Output of the last spatial convolution (B, C, H, W), or the patches among a transformer's
    tokens as such a map; part of the logits' graph."""


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
            by_name[cam] = _start_head(graph_module, graph, by_name[cam])
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


def _start_head(graph_module: fx.GraphModule, graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Let the gradient graph of the head begin at a node's value as a map (B, C, H, W)."""
    with graph.inserting_after(node):
        if not is_layer_norm(graph_module, node):
            start = graph.call_function(head_start, (node,))
            node.replace_all_uses_with(start, delete_user_cb=lambda user: user is not start)
            return start
        patches = graph.call_function(as_map, (node,))
    with graph.inserting_after(patches):
        start = graph.call_function(head_start, (patches,))
    with graph.inserting_after(start):
        back = graph.call_function(from_map, (node, start))
    node.replace_all_uses_with(back, delete_user_cb=lambda user: user not in (patches, back))
    return start
