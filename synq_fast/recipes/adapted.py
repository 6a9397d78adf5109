"""What becomes of a recipe on a network that holds no statistics of its training data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from synq_fast.recipes.schema import Recipe
from synq_fast.synthesis.losses import Classes, ImageLoss, Patches, Roughness, Variation


def without_statistics(recipe: Recipe, *, attends: bool) -> Recipe:
    """The recipe without the losses that read BatchNorms; others take their place.

    These are classes, and the patches of a transformer (PSAQ-ViT) or else smoothness. A recipe
    that has one of them keeps its own, and one that reads no BatchNorm stays as it is.

    Args:
        recipe: for a network with BatchNorm statistics.
        attends: whether the network has attentions.
    """
    kinds = (Classes, Patches, Roughness) if attends else (Classes, Variation)
    synthesis, generator = recipe.synthesis, recipe.generator
    if "generator" in recipe.stages:
        losses = _without_norms(generator.losses, (Classes, Variation))
        generator = replace(generator, losses=losses)
    return replace(
        recipe,
        synthesis=replace(
            synthesis,
            centers=replace(synthesis.centers, weight=0.0),
            losses=_without_norms(synthesis.losses, kinds, centers=synthesis.centers.weight > 0),
        ),
        generator=generator,
    )


def _without_norms(
    losses: Sequence[ImageLoss], kinds: Iterable[type[ImageLoss]], *, centers: bool = False
) -> tuple[ImageLoss, ...]:
    kept = [loss for loss in losses if "norms" not in loss.reads]
    if not centers and not any(loss.weight and "norms" in loss.reads for loss in losses):
        return tuple(kept)
    for kind in kinds:
        if not any(type(loss) is kind and loss.weight for loss in kept):
            kept.append(kind())
    return tuple(kept)
