"""Networks through ``torch.compile``, in pieces between which gradients can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._functorch import config
from torch.fx.passes.split_module import split_module


def compiled(module: fx.GraphModule, border: str | None) -> Callable[..., Any]:
    """The module's forward, compiled when it is first called.

    Args:
        module: a graph with one input.
        border: name of a node that is left as it is; what comes before and what comes after it
            are compiled apart, because a compiled piece is one node of the autograd graph and has
            no gradients for values inside it.
    """
    forward: Callable[..., Any]
    if border is None:
        forward = torch.compile(module)
    else:
        nodes = [node.name for node in module.graph.nodes]
        middle = nodes.index(border)
        piece = {name: 1 + (i > middle) - (i < middle) for i, name in enumerate(nodes)}
        forward = split_module(module, module, lambda node: piece[node.name])
        for name in ("submod_0", "submod_2"):
            setattr(forward, name, torch.compile(getattr(forward, name)))

    def call(*inputs: Any) -> Any:
        # The step goes through some pieces more than once; donated buffers forbid that.
        with config.patch(donated_buffer=False):
            return forward(*inputs)

    return call
