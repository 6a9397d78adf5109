"""What papers report of the recipes that are named after them."""

from __future__ import annotations

from typing import NamedTuple


class PublishedResult(NamedTuple):
    """A row of a paper's table; its weights and labelled images need not be those that are used."""

    top1: float
    """In percent."""
    float32: float
    """Of the network before quantization, in the same table."""

    def __str__(self) -> str:
        """As tables show it."""
        return f"{self.top1:.2f} of {self.float32:.2f}"


_Rows = dict[str, tuple[float, dict[str, tuple[float | None, float | None]]]]
# Top-1 of each network in floating point, and of each recipe at the table's two widths.
# SynQ (ICLR 2025), table 1.
_W4A4_W3A3: _Rows = {
    "cifar10-resnet20": (
        93.89,
        {
            "gdfq": (90.11, 75.11),
            "intraq": (91.49, 77.07),
            "adadfq": (92.31, 84.89),
            "hast": (92.36, 86.34),
            "texq": (92.68, 86.47),
            "plf": (92.47, 88.04),
            "synq": (92.76, 88.11),
        },
    ),
    "resnet18": (
        71.47,
        {
            "gdfq": (60.6, 20.23),
            "intraq": (66.47, 45.51),
            "adadfq": (66.53, 38.1),
            "hast": (66.91, 42.58),
            "texq": (67.73, 50.28),
            "plf": (67.02, None),
            "synq": (67.9, 52.02),
        },
    ),
    "resnet50": (
        77.73,
        {
            "gdfq": (54.16, 0.31),
            "adadfq": (68.38, 17.63),
            "texq": (70.72, 25.27),
            "plf": (68.97, None),
            "synq": (71.05, 26.89),
        },
    ),
    "mobilenet_v2": (
        73.03,
        {
            "gdfq": (59.43, 1.46),
            "intraq": (65.1, None),
            "adadfq": (65.41, 28.99),
            "hast": (65.6, None),
            "texq": (67.07, 32.8),
            "synq": (67.27, 34.21),
        },
    ),
}
# The same, table 2.
_W4A8_W8A8: _Rows = {
    "timm/deit_tiny_patch16_224": (
        72.21,
        {
            "psaq": (65.57, 71.56),
            "synq-psaq": (65.9, 71.74),
        },
    ),
    "timm/deit_small_patch16_224": (
        79.85,
        {
            "psaq": (72.04, 75.97),
            "synq-psaq": (72.28, 76.16),
        },
    ),
    "timm/swin_tiny_patch4_window7_224": (
        81.35,
        {
            "psaq": (69.78, 73.54),
            "synq-psaq": (70.76, 74.11),
        },
    ),
    "timm/swin_small_patch4_window7_224": (
        83.20,
        {
            "psaq": (75.03, 76.68),
            "synq-psaq": (75.82, 77.32),
        },
    ),
}
_TABLES = ((("w4a4", "w3a3"), _W4A4_W3A3), (("w4a8", "w8a8"), _W4A8_W8A8))


def published_result(network: str, recipe: str, bits: str) -> PublishedResult | None:
    """What SynQ's tables say of a network, a recipe and widths; None where they say nothing.

    Args:
        network: a name that ``load_teacher`` knows.
        recipe: its name.
        bits: ``"w4a4"``, say.
    """
    for widths, rows in _TABLES:
        if network in rows and bits in widths:
            float32, recipes = rows[network]
            top1 = recipes.get(recipe, (None, None))[widths.index(bits)]
            return None if top1 is None else PublishedResult(top1, float32)
    return None
