"""Values of a recipe that are fine each, and together leave nothing to do."""

from __future__ import annotations

from synq_fast.errors import RecipeError
from synq_fast.recipes.schema import Recipe


def check_consistency(recipe: Recipe, source: str) -> None:
    """Refuse what would waste a run.

    Args:
        recipe: every value of it is within its bounds.
        source: where it is from, shown to the user.

    Raises:
        RecipeError: names the keys that do not go together.
    """
    for problem in _problems(recipe):
        raise RecipeError(f"{source}: {problem}")


def _problems(recipe: Recipe) -> list[str]:
    synthesis, finetune = recipe.synthesis, recipe.finetune
    centers, distillation = synthesis.centers, finetune.distillation
    problems = []
    for name, part, used in (
        ("synthesis", synthesis, True),
        ("synthesis.centers", centers, centers.weight > 0),
    ):
        if used and part.min_learning_rate > part.learning_rate:
            problems.append(
                f"{name}.min_learning_rate is the least that the rate falls to, but "
                f"{part.min_learning_rate} is above {name}.learning_rate = {part.learning_rate}"
            )
    if not (synthesis.statistics_weight or synthesis.class_weight or centers.weight):
        problems.append(
            "with synthesis.statistics_weight, synthesis.class_weight and synthesis.centers.weight "
            "all 0 the images stay noise; set one above 0"
        )
    if centers.weight and not (
        centers.class_weight or centers.shallow_weight or centers.deep_weight
    ):
        problems.append(
            "with the class_weight, shallow_weight and deep_weight of synthesis.centers all 0 the "
            "centres stay noise; set one above 0, or synthesis.centers.weight = 0"
        )
    if finetune.steps and not (
        distillation.alpha
        or distillation.label_weight
        or finetune.features.weight
        or finetune.cam.weight
    ):
        problems.append(
            "with finetune.distillation.alpha, finetune.distillation.label_weight, "
            "finetune.features.weight and finetune.cam.weight all 0 fine-tuning learns nothing; "
            "set one above 0, or finetune.steps = 0"
        )
    if finetune.schedule == "step" and not finetune.milestones:
        problems.append(
            'finetune.schedule = "step" lowers the rate at finetune.milestones, and there are '
            "none; give shares of the steps such as [0.5, 0.75]"
        )
    return problems
