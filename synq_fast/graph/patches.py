"""Tokens of patches as maps, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx, nn

from synq_fast.graph.nodes import called_module, called_name, shape_of


def before_patches(tokens: int) -> int:
    """How many class tokens and registers come before the patches, which make a square."""
    return tokens - math.isqrt(tokens) ** 2


def as_map(x: Tensor) -> Tensor:
    """The patches (B, C, h, w) among tokens (B, N, C), or of (B, h, w, C)."""
    if x.ndim == 4:
        return x.permute(0, 3, 1, 2)
    before = before_patches(x.shape[1])
    side = math.isqrt(x.shape[1] - before)
    patches: Tensor = x[:, before:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return patches


def from_map(x: Tensor, patches: Tensor) -> Tensor:
    """The value that ``as_map`` was given, with these patches instead of its own."""
    moved = patches.permute(0, 2, 3, 1)
    if x.ndim == 4:
        return moved
    return torch.cat([x[:, : before_patches(x.shape[1])], moved.flatten(1, 2)], 1)


def is_layer_norm(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node normalises tokens (B, N, C) or (B, h, w, C), their channels last."""
    named, shape = called_name(node) in ("layer_norm", "rms_norm"), shape_of(node)
    is_norm = named or isinstance(called_module(graph_module, node), nn.LayerNorm)
    return is_norm and shape is not None and len(shape) in (3, 4)
