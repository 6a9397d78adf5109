"""What studies work with: runs of one network, their images, and labelled images to measure on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, fx

from synq_fast.bank.batches import Filter
from synq_fast.bank.images import Bank, ImageBank
from synq_fast.bank.source import BankSource
from synq_fast.data import EvaluationSet
from synq_fast.engine.evaluation import evaluate
from synq_fast.engine.identity import bank_name
from synq_fast.engine.run import Run
from synq_fast.engine.stages import STAGES, Made, image_bank, in_turns
from synq_fast.errors import RecipeError, SynqFastWarning
from synq_fast.models import Teacher
from synq_fast.quant import BitWidths, held_weights
from synq_fast.recipes import Recipe, load_recipe

IMAGE_STAGES = ("synthesis", "generator")
_RUNS, _BANKS = 4, 2
"""How many are in memory together; parts come seed by seed."""
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass
class Workbench:
    """A network, a recipe, widths and seeds on a device."""

    teacher: Teacher
    recipe: Recipe
    bits: BitWidths
    seeds: tuple[int, ...]
    device: torch.device
    data: EvaluationSet | None = None
    """Labelled images; they never influence a model."""
    pictures: tuple[str, Tensor] | None = None
    """Real images (N, C, H, W) as the network takes them, and what they are called."""
    folder: Path | None = None
    """Where images are kept."""
    progress: bool = False
    _banks: dict[int, ImageBank] = field(default_factory=dict, repr=False)
    _runs: dict[tuple[int, Recipe], Run] = field(default_factory=dict, repr=False)

    def varied(self, overrides: Mapping[str, Any]) -> Recipe:
        """The recipe with other values, also such as do nothing beside its others."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SynqFastWarning)
            return load_recipe(self.recipe, overrides)

    def run(self, seed: int, recipe: Recipe | None = None) -> Run:
        """A run without a folder, the same for the same seed and recipe."""
        wanted = (seed, recipe or self.recipe)
        if wanted not in self._runs:
            run = Run(self.teacher, wanted[1], self.bits, self.device, seed=seed)
            _keep(self._runs, wanted, run, _RUNS)
        return self._runs[wanted]

    def bank(self, seed: int) -> ImageBank:
        """The recipe's images of a seed, in memory; kept in a folder that comparisons share.

        Raises:
            RecipeError: the recipe makes no bank.
        """
        if seed in self._banks:
            return self._banks[seed]
        if "synthesis" not in self.recipe.stages:
            raise RecipeError(
                f"recipe {self.recipe.name} has no bank of images: its stages are "
                f"{', '.join(self.recipe.stages)}; take one with the stage synthesis"
            )
        folder = self.folder and self.folder / "banks" / bank_name(self.recipe, seed)
        run = Run(
            self.teacher, self.recipe, self.bits, self.device, seed=seed, progress=self.progress
        )
        bank: Bank = image_bank(run, folder)
        whole = ImageBank(*bank.take(torch.arange(len(bank), device="cpu")))
        _keep(self._banks, seed, whole, _BANKS)
        return whole

    def source(self, seed: int, filter: Filter | None = None) -> BankSource:
        """The images of a seed, filtered as the recipe says or otherwise."""
        recipe, valid = self.recipe, self.teacher.known_range()
        return BankSource(self.bank(seed), filter or recipe.filter, seed, recipe.variety, valid)

    def stages(self, run: Run, source: BankSource) -> Iterator[tuple[str, fx.GraphModule]]:
        """What a run's recipe does after its images are there: the student after each stage."""
        made = Made(run.build_student(), in_turns(run, source))
        for name in run.recipe.stages:
            if name not in IMAGE_STAGES:
                made = STAGES[name](run, made)
                yield name, made.student

    def top1(self, model: fx.GraphModule) -> float:
        """Accuracy on the labelled images in percent."""
        assert self.data is not None
        with torch.no_grad(), held_weights(model):
            return evaluate(model, self.data).top1


def _keep(kept: dict[_Key, _Value], key: _Key, value: _Value, most: int) -> None:
    """Add a value, in the place of the oldest where there are as many as may be."""
    while len(kept) >= most:
        del kept[next(iter(kept))]
    kept[key] = value


@torch.no_grad()
def logits_of(network: fx.GraphModule, images: Tensor, at_once: int = 128) -> Tensor:
    """Logits (N, classes) of images (N, C, H, W)."""
    return torch.cat([network(part) for part in images.split(at_once)])
