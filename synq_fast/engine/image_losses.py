"""Losses of images that a model has what it takes for."""

from __future__ import annotations

import warnings

from synq_fast.errors import RecipeError, SynqFastWarning
from synq_fast.models import Teacher
from synq_fast.recipes import Recipe
from synq_fast.recipes.adapted import without_statistics
from synq_fast.synthesis.losses import IMAGE_LOSSES
from synq_fast.synthesis.teacher import ImageTeacher


def with_image_losses(recipe: Recipe, shown: ImageTeacher, teacher: Teacher) -> Recipe:
    """The recipe, without what the model has no BatchNorm statistics for.

    Args:
        recipe: how images are made.
        shown: what losses can see of the model.
        teacher: its name and its images.

    Raises:
        RecipeError: its images come from attentions, class tokens or patches, and the model has
            none.
    """
    losses = (*recipe.synthesis.losses, *recipe.generator.losses)
    if not shown.has_attentions and any(
        loss.weight and "attentions" in loss.reads for loss in losses
    ):
        raise RecipeError(
            f"the recipe's images come from a transformer's attentions (patches), and "
            f"{teacher.name} has none that could be found; use a recipe for "
            f"convolutional networks, such as synq-fast-imagenet"
        )
    by_token = [
        f"synthesis.{name}"
        for name, kind in IMAGE_LOSSES.items()
        if "class token" in kind.reads and any(type(x) is kind and x.weight for x in losses)
    ]
    if by_token and not shown.has_class_token:
        raise RecipeError(
            f"{' and '.join(by_token)} read what the class token of every layer looks at, and "
            f"{teacher.name} has no class token beside all patches of an image in every "
            f"attention (it has windows, merges patches or takes their mean); set "
            f"{' = 0 and '.join(f'{name}.weight' for name in by_token)} = 0"
        )
    if recipe.synthesis.regions.most and not shown.patches_along(teacher.input_shape):
        raise RecipeError(
            f"synthesis.regions enlarges whole patches of an image, and {teacher.name} "
            f"has no attention over a square grid of patches that fill one; set "
            f"synthesis.regions.most = 0"
        )
    if shown.has_statistics:
        return recipe
    adapted = without_statistics(recipe, attends=shown.has_attentions)
    if adapted != recipe:
        instead = "the similarity of its patches" if shown.has_attentions else "smoothness"
        warnings.warn(
            f"{teacher.name} has no BatchNorm2d with running statistics to match: images "
            f"come from its classes and from {instead} alone, which says less of the data it "
            f"was trained on; expect less accuracy, most of all below 6 bits",
            SynqFastWarning,
            stacklevel=3,
        )
    return adapted
