"""Values of a recipe that are fine each, and together leave nothing to do."""

from __future__ import annotations

from synq_fast.errors import RecipeError
from synq_fast.finetune.losses import LOSSES
from synq_fast.finetune.settings import Finetune
from synq_fast.quant.balance import BALANCED
from synq_fast.recipes.schema import STAGES, Recipe
from synq_fast.synthesis.losses import (
    GENERATOR_LOSSES,
    IMAGE_LOSSES,
    Classes,
    Disagreement,
    Margin,
    SoftClasses,
)
from synq_fast.synthesis.settings import Synthesis

_LEVELS = {"probabilities": "powers of two", "after_gelu": "small floats"}
"""Keys of quantization that may choose levels other than uniform ones."""


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
    centers = synthesis.centers
    made = "synthesis" in recipe.stages
    problems = _stage_problems(recipe)
    for name, part, used in (
        ("synthesis", synthesis, made),
        ("synthesis.centers", centers, made and centers.weight > 0),
    ):
        if used and part.min_learning_rate > part.learning_rate:
            problems.append(
                f"{name}.min_learning_rate is the least that the rate falls to, but "
                f"{part.min_learning_rate} is above {name}.learning_rate = {part.learning_rate}"
            )
    alone = [name for name, kind in IMAGE_LOSSES.items() if "student" not in kind.reads]
    if (
        made
        and not centers.weight
        and not any(loss.weight and "student" not in loss.reads for loss in synthesis.losses)
    ):
        problems.append(
            f"no loss of synthesis that the float network alone decides has a weight above 0, so "
            f"the images stay noise; give one ({', '.join(f'synthesis.{n}' for n in alone)})"
        )
    if made:
        problems += _refresh_problems(recipe)
    if made and synthesis.regions.most:
        problems += _region_problems(synthesis)
    if made and synthesis.sparse.share:
        problems += _sparse_problems(synthesis)
    if "generator" in recipe.stages and not any(loss.weight for loss in recipe.generator.losses):
        problems.append(
            f"no loss of generator has a weight above 0, so it learns nothing; give one "
            f"({', '.join(f'generator.{name}' for name in GENERATOR_LOSSES)})"
        )
    sections = {
        Margin: "synthesis.margin",
        SoftClasses: "synthesis.soft_classes",
        Disagreement: "generator.disagreement",
    }
    for loss in (*synthesis.losses, *recipe.generator.losses):
        if isinstance(loss, Margin | SoftClasses | Disagreement) and loss.low > loss.high:
            section = sections[type(loss)]
            problems.append(
                f"{section}.low = {loss.low} is above {section}.high = {loss.high}; nothing lies "
                f"between"
            )
    if centers.weight and not (
        centers.class_weight or centers.shallow_weight or centers.deep_weight
    ):
        problems.append(
            "with the class_weight, shallow_weight and deep_weight of synthesis.centers all 0 the "
            "centres stay noise; set one above 0, or synthesis.centers.weight = 0"
        )
    trains = "finetune" in recipe.stages and finetune.steps > 0
    if trains and not any(loss.active for loss in finetune.losses):
        problems.append(
            f"no loss of finetune has a factor above 0, so fine-tuning learns nothing; give one "
            f"({', '.join(f'finetune.{name}' for name in LOSSES)}), or set finetune.steps = 0"
        )
    if trains and finetune.mixup:
        problems += _mixing_problems(finetune)
    if finetune.schedule == "step" and not finetune.milestones:
        problems.append(
            'finetune.schedule = "step" lowers the rate at finetune.milestones, and there are '
            "none; give shares of the steps such as [0.5, 0.75]"
        )
    for name, levels in _LEVELS.items():
        choice = getattr(recipe.quantization, name)
        if choice not in ("uniform", "auto") and recipe.quantization.placement == "integer":
            problems.append(
                'quantization.placement = "integer" is for runtimes that compute in integers, '
                f'which have no {levels}; set quantization.{name} = "uniform"'
            )
    if recipe.quantization.rotate == "always" and recipe.quantization.fold_norms == "always":
        problems.append(
            "a rotated network has RMSNorms without parameters, which quantization.fold_norms "
            '= "always" cannot fold; set one of quantization.rotate and quantization.fold_norms to '
            '"never"'
        )
    if recipe.variety.softest > recipe.variety.sharpest:
        problems.append(
            "each image's cut-off lies between variety.softest and variety.sharpest: lower "
            f"variety.softest = {recipe.variety.softest:g}, or raise variety.sharpest = "
            f"{recipe.variety.sharpest:g}"
        )
    fixed = recipe.quantization.weight_range == "learned"
    if recipe.quantization.weight_rounding == BALANCED and not fixed:
        problems.append(
            'quantization.weight_rounding = "balanced" moves weights within ranges that stay; set '
            'quantization.weight_range = "learned"'
        )
    learned = fixed and recipe.quantization.learn_ranges
    if "blocks" in recipe.stages and not learned:
        problems.append(
            'the stage blocks trains ranges: set quantization.weight_range = "learned" and '
            "quantization.learn_ranges = true"
        )
    return problems


def _refresh_problems(recipe: Recipe) -> list[str]:
    synthesis, refresh = recipe.synthesis, recipe.synthesis.refresh
    problems = []
    against = [
        f"synthesis.{name}"
        for name, kind in IMAGE_LOSSES.items()
        if "student" in kind.reads and any(type(x) is kind and x.weight for x in synthesis.losses)
    ]
    if against and not refresh.every:
        problems.append(
            f"{' and '.join(against)} read the quantized network, which images meet only when they "
            f"are made again in turn with its training; set synthesis.refresh.every"
        )
    if not refresh.every:
        return problems
    if not refresh.restart and synthesis.parametrization == "latent":
        problems.append(
            "synthesis.refresh.restart = false goes on with the images, and no latent of "
            'synthesis.parametrization = "latent" is known for them; set it to "pixels" or '
            '"spectrum", or synthesis.refresh.restart = true'
        )
    if refresh.ranges and recipe.quantization.learn_ranges:
        problems.append(
            "synthesis.refresh.ranges finds the activation ranges again, which would undo the "
            "training of quantization.learn_ranges = true; set one of the two to false"
        )
    return problems


def _region_problems(synthesis: Synthesis) -> list[str]:
    classes = (Classes, SoftClasses)
    if any(isinstance(loss, classes) and loss.weight for loss in synthesis.losses):
        return []
    return [
        "synthesis.regions gives regions of an image classes of their own, and no loss looks at "
        "them; give synthesis.classes or synthesis.soft_classes a weight above 0, or set "
        "synthesis.regions.most = 0"
    ]


def _sparse_problems(synthesis: Synthesis) -> list[str]:
    problems = []
    if synthesis.regions.most:
        problems.append(
            "synthesis.regions looks at regions of whole images, and synthesis.sparse drops "
            "patches of them; set synthesis.sparse.share = 0, or synthesis.regions.most = 0"
        )
    whole = [
        f"synthesis.{name}"
        for name, kind in IMAGE_LOSSES.items()
        if kind.whole and any(type(loss) is kind and loss.weight for loss in synthesis.losses)
    ]
    if whole:
        problems.append(
            f"{' and '.join(whole)} read every patch of an image, of which synthesis.sparse drops "
            f"some; set synthesis.sparse.share = 0, or their weight = 0"
        )
    if synthesis.parametrization != "pixels":
        problems.append(
            f"synthesis.sparse leaves the pixels of dropped patches as they are, and "
            f'synthesis.parametrization = "{synthesis.parametrization}" changes all of an image at '
            f'once; set it to "pixels", or synthesis.sparse.share = 0'
        )
    return problems


def _mixing_problems(finetune: Finetune) -> list[str]:
    problems = []
    labelled = [
        f"finetune.{name}"
        for name, kind in LOSSES.items()
        if (loss := finetune.loss(kind)) is not None and loss.active and loss.reads_labels
    ]
    if labelled:
        problems.append(
            f"finetune.mixup mixes images of different labels, and a mixed image has none that "
            f"{' and '.join(labelled)} could read; set finetune.distillation.label_weight = 0 and "
            f'finetune.cam.target = "argmax", or finetune.mixup = 0'
        )
    if finetune.batch_size == 1:
        problems.append(
            "finetune.mixup mixes images of one batch, and finetune.batch_size = 1 has no second "
            "one; raise it, or set finetune.mixup = 0"
        )
    return problems


def _stage_problems(recipe: Recipe) -> list[str]:
    stages = recipe.stages
    problems = []
    if list(stages) != [stage for stage in STAGES if stage in stages]:
        problems.append(
            f"stages come once each, in the order {', '.join(STAGES)}; got {', '.join(stages)}"
        )
    sources = [stage for stage in ("synthesis", "generator") if stage in stages]
    if len(sources) != 1:
        found = " and ".join(sources) or "none"
        problems.append(f"images come from one stage, synthesis or generator; got {found}")
    if "calibration" not in stages:
        problems.append("stages lack calibration, without which there are no activation ranges")
    return problems
