"""Networks that hold no statistics of what they were trained on."""

import json

import pytest
import torch
from torch import nn

import synq_fast
from synq_fast.errors import SynqFastWarning
from synq_fast.recipes import load_recipe
from synq_fast.recipes.adapted import without_statistics
from synq_fast.synthesis.losses import Classes, Prior, Variation
from tests.tiny import CLASSES, SHAPE, TINY_OVERRIDES, run


def plain_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(SHAPE[0], 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * SHAPE[1] * SHAPE[2], CLASSES),
    ).eval()


@pytest.mark.parametrize("recipe", ["synq-digits", "gdfq-digits"])
def test_images_come_from_classes_and_smoothness_and_it_is_said(tmp_path, recipe):
    few = {"generator.steps": 2, "generator.batch_size": 4} if recipe == "gdfq-digits" else {}
    with pytest.warns(SynqFastWarning, match="no BatchNorm2d with running statistics") as caught:
        result = run(plain_net(), recipe=recipe, output=tmp_path, overrides=few)
    assert any("expect less accuracy" in str(w.message) for w in caught)
    assert result.recipe == without_statistics(result.recipe, attends=False)
    again = synq_fast.load(tmp_path, model=plain_net())
    images = torch.randn(4, *SHAPE)
    assert torch.equal(again(images), result.model(images))
    assert "statistics" not in json.dumps(result.history)


def test_what_the_recipe_says_itself_stays():
    overrides = {
        "synthesis.centers.weight": 0.5,
        "synthesis.prior.weight": 3.0,
        "synthesis.classes.weight": 0.0,
        "synthesis.variation.weight": 2.0,
    }
    given = load_recipe("synq-digits", {**TINY_OVERRIDES, **overrides})
    recipe = without_statistics(given, attends=False)
    assert recipe.synthesis.centers.weight == 0
    kinds = {type(loss): loss.weight for loss in recipe.synthesis.losses if loss.weight}
    assert kinds == {Prior: 3.0, Variation: 2.0, Classes: Classes().weight}
    assert without_statistics(recipe, attends=False) == recipe
