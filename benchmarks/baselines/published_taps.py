"""Where the published step looks into a model: residual bodies and the last convolution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, fx, nn


def residual_bodies(traced: fx.GraphModule) -> tuple[str, ...]:
    """Names of the modules whose outputs are added to a shortcut, in execution order.

    Of the two operands of an addition the body is the one with more convolutions before it, and
    the first one where both have as many.
    """
    convolutions: dict[fx.Node, int] = {}
    names = []
    for node in traced.graph.nodes:
        operands = node.all_input_nodes
        behind = max((convolutions[operand] for operand in operands), default=0)
        called = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        convolutions[node] = behind + isinstance(called, nn.Conv2d)
        if getattr(node.target, "__name__", node.target) == "add" and len(operands) == 2:
            body = max(operands, key=convolutions.__getitem__)
            if body.op == "call_module":
                names.append(str(body.target))
    return tuple(names)


def last_convolution(model: nn.Module) -> str:
    """Name of the last convolution in module order.

    Raises:
        ValueError: the model has no convolution.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if not names:
        raise ValueError("the model has no nn.Conv2d, so it has no layer for Grad-CAM")
    return str(names[-1])


class OutputTaps:
    """Keeps the latest output of some modules of a model."""

    def __init__(
        self, model: nn.Module, names: Sequence[str], *, start_graph: bool = False
    ) -> None:
        """Hook the named modules.

        Args:
            model: the model to look into.
            names: qualified names of its modules.
            start_graph: an output that is part of no graph becomes the start of one.
        """
        self._outputs: dict[str, Tensor] = {}
        self._start_graph = start_graph
        self.names = tuple(names)
        for name in names:
            model.get_submodule(name).register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        if self._start_graph and torch.is_grad_enabled() and not output.requires_grad:
            output.requires_grad_()
        self._outputs[name] = output

    def read(self) -> list[Tensor]:
        """The outputs of the last forward, in the order of the names."""
        return [self._outputs[name] for name in self.names]
