"""Published figures beside ours."""

import pytest

from synq_fast.engine.comparison import Comparison, Trial
from synq_fast.engine.published_results import _TABLES, PublishedResult, published_result
from synq_fast.recipes import list_recipes


@pytest.mark.parametrize(
    ("network", "recipe", "bits", "expected"),
    [
        ("cifar10-resnet20", "synq", "w4a4", (92.76, 93.89)),
        ("cifar10-resnet20", "gdfq", "w3a3", (75.11, 93.89)),
        ("resnet50", "plf", "w4a4", (68.97, 77.73)),
        ("mobilenet_v2", "synq", "w3a3", (34.21, 73.03)),
        ("timm/swin_small_patch4_window7_224", "psaq", "w8a8", (76.68, 83.20)),
        ("timm/deit_tiny_patch16_224", "synq-psaq", "w4a8", (65.90, 72.21)),
    ],
)
def test_what_the_tables_say(network, recipe, bits, expected):
    assert published_result(network, recipe, bits) == PublishedResult(*expected)


@pytest.mark.parametrize(
    ("network", "recipe", "bits"),
    [
        ("resnet50", "hast", "w4a4"),  # no figure
        ("cifar100-resnet20kd", "synq", "w4a4"),  # another network
        ("cifar10-resnet20", "synq-fast-cifar", "w4a4"),
        ("cifar10-resnet20", "synq", "w4a8"),
        ("resnet18", "psaq", "w8a8"),
    ],
)
def test_nothing_is_made_up(network, recipe, bits):
    assert published_result(network, recipe, bits) is None


def test_every_recipe_of_the_tables_is_there():
    named = {recipe for _, rows in _TABLES for _, recipes in rows.values() for recipe in recipes}
    assert len(named) == 9 and named <= set(list_recipes())


def test_the_table_shows_them_beside_ours():
    def trial(recipe):
        return Trial(recipe, "w4a4", 0, "ends as the rest", 91.6, 80.0, 90.5, 1000, 1.0, "")

    comparison = Comparison("cifar10-resnet20", (trial("synq"), trial("synq-fast-cifar")))
    rows = [line for line in comparison.table().splitlines() if line.startswith("| w4a4")]
    assert rows[0].endswith("| 92.76 of 93.89 |") and rows[1].endswith("| - |")
    heads = [line for line in comparison.table().splitlines() if line.startswith("| bits")]
    assert heads[0].count("|") == rows[0].count("|")
