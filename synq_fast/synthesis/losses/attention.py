"""What attention looks at, and how its heads differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from synq_fast import ops
from synq_fast.fields import factor
from synq_fast.graph.nodes import TRACED_IMAGES
from synq_fast.synthesis.losses.loss import ImageLoss, Reads, Seen, Start

_Layer = TypeVar("_Layer")
_COMPONENTS = 3
_WIDTHS = (1 / 14, 3 / 14)


@dataclass(frozen=True)
class AttentionPrior(ImageLoss):
    """Attention of the deeper half drawn to random places (SARDFQ, arXiv 2412.16553, APA).

    Each head of each image has a place to look at: one to three Gaussians on the grid of patches,
    which sum to one. Their number and their widths, of one to three patches of 14, are a guess;
    the paper's are not public. The loss is ``sum_l l/L sum_h MSE`` of the class token's
    probabilities, or of the mean over all queries where there is no class token.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({"attentions"})
    whole: ClassVar[bool] = True

    weight: float = factor(1000.0, "factor on the distance of attention from its places")

    def begin(self, start: Start) -> tuple[Tensor, ...]:
        """The places (B or 1, H, patches) of each deep layer; windows share theirs."""
        images = len(start.labels)
        places = []
        for shape in _deep(start.attentions):
            *_, heads, _, keys = shape
            rows = images if len(shape) == 4 and shape[0] == TRACED_IMAGES else 1
            side = math.isqrt(keys)
            drawn = random_places(rows * heads, side, start.generator).view(rows, heads, -1)
            places.append(drawn.to(start.labels.device))
        return tuple(places)

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """The sum over deep layers and heads; the mean over images and windows."""
        layers = len(seen.attentions)
        total = []
        for depth, (attended, place) in enumerate(zip(_deep(seen.attentions), held, strict=True)):
            p = attended.probabilities.float()
            before = attended.before_patches(p.shape[-1])
            looked = (p[..., 0, :] if before else p.mean(-2))[..., before:]
            distance = (looked - place).square().mean(-1).sum(-1).mean()
            total.append((layers - len(held) + depth + 1) / layers * distance)
        return torch.stack(total).sum()


def _deep(layers: tuple[_Layer, ...]) -> tuple[_Layer, ...]:
    return layers[len(layers) // 2 :]


def random_places(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Mixtures of one to three Gaussians on a grid, each of them (side * side) and of sum one.

    Args:
        count: how many.
        side: of the grid, in patches.
        generator: on the CPU.
    """
    size = (5, count, _COMPONENTS)
    draws = torch.rand(size, generator=generator, dtype=torch.float32, device="cpu")
    ticks = (torch.arange(side, dtype=torch.float32, device="cpu") + 0.5) / side
    width = _WIDTHS[0] + (_WIDTHS[1] - _WIDTHS[0]) * draws[2]
    rows, columns = (
        torch.exp(-0.5 * ((ticks - centre[..., None]) / width[..., None]).square())
        for centre in draws[:2]
    )
    # The first is always there, the others half of the time.
    share = draws[3] * (draws[4] < 0.5)
    share[:, 0] = draws[3, :, 0].clamp_min(1e-3)
    mixed = torch.einsum("ck,cky,ckx->cyx", share, rows, columns).flatten(1)
    return mixed / mixed.sum(1, keepdim=True)


@dataclass(frozen=True)
class Heads(ImageLoss):
    """Heads that look alike, or exactly unlike, at each query (MimiQ, arXiv 2407.20021).

    One minus the squared structural similarity of each pair of heads' logits over the patches,
    each scaled to 0..1; the mean over layers, images, queries and ordered pairs.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({"attentions"})

    weight: float = factor(1.0, "factor on how much heads differ")

    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """The mean over the layers."""
        layers = []
        for attended in seen.attentions:
            before = attended.before_patches(attended.logits.shape[-1])
            logits = attended.logits[..., before:, before:]
            layers.append(ops.inter_head_similarity_loss(logits.flatten(0, -4)))
        return torch.stack(layers).mean()
