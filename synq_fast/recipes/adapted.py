"""What becomes of a recipe on a network that holds no statistics of its training data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from synq_fast.recipes.schema import Recipe
from synq_fast.synthesis.losses import Classes, ImageLoss, Variation


def without_statistics(recipe: Recipe) -> Recipe:
    """The recipe without the losses that read BatchNorms; classes and smoothness take their place.

    A recipe that has either keeps its own.
    """
    synthesis, generator = recipe.synthesis, recipe.generator
    return replace(
        recipe,
        synthesis=replace(
            synthesis,
            centers=replace(synthesis.centers, weight=0.0),
            losses=_without_norms(synthesis.losses),
        ),
        generator=replace(generator, losses=_without_norms(generator.losses)),
    )


def _without_norms(losses: Iterable[ImageLoss]) -> tuple[ImageLoss, ...]:
    kept = [loss for loss in losses if "norms" not in loss.reads]
    for kind in (Classes, Variation):
        if not any(type(loss) is kind and loss.weight for loss in kept):
            kept.append(kind())
    return tuple(kept)
