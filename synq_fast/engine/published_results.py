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


_WIDTHS = ("w4a4", "w3a3")
_NETWORKS = {
    "cifar10-resnet20": 93.89,
    "cifar100-resnet20": 70.33,
    "resnet18": 71.47,
    "resnet50": 77.73,
    "mobilenet_v2": 73.03,
}
# SynQ (ICLR 2025), table 1: W4A4 and W3A3 of these networks; 0 where there is no figure.
_CONVOLUTIONAL: dict[str, tuple[float, ...]] = {
    "gdfq": (90.11, 75.11, 63.75, 47.61, 60.60, 20.23, 54.16, 0.31, 59.43, 1.46),
    "intraq": (91.49, 77.07, 64.98, 48.25, 66.47, 45.51, 0, 0, 65.10, 0),
    "adadfq": (92.31, 84.89, 66.81, 52.74, 66.53, 38.10, 68.38, 17.63, 65.41, 28.99),
    "hast": (92.36, 86.34, 66.68, 55.67, 66.91, 42.58, 0, 0, 65.60, 0),
    "texq": (92.68, 86.47, 67.18, 55.87, 67.73, 50.28, 70.72, 25.27, 67.07, 32.80),
    "plf": (92.47, 88.04, 66.94, 57.03, 67.02, 0, 68.97, 0, 0, 0),
    "synq": (92.76, 88.11, 67.34, 57.28, 67.90, 52.02, 71.05, 26.89, 67.27, 34.21),
}
_TRANSFORMERS = {
    "timm/deit_tiny_patch16_224": 72.21,
    "timm/deit_small_patch16_224": 79.85,
    "timm/swin_tiny_patch4_window7_224": 81.35,
    "timm/swin_small_patch4_window7_224": 83.20,
}
# The same, table 2: W4A8 and W8A8.
_OF_TRANSFORMERS: dict[str, tuple[float, ...]] = {
    "psaq": (65.57, 71.56, 72.04, 75.97, 69.78, 73.54, 75.03, 76.68),
    "synq-psaq": (65.90, 71.74, 72.28, 76.16, 70.76, 74.11, 75.82, 77.32),
}


def published_result(network: str, recipe: str, bits: str) -> PublishedResult | None:
    """What SynQ's tables say of a network, a recipe and widths; None where they say nothing.

    Args:
        network: a name that ``load_teacher`` knows.
        recipe: its name.
        bits: ``"w4a4"``, say.
    """
    for networks, widths, rows in (
        (_NETWORKS, _WIDTHS, _CONVOLUTIONAL),
        (_TRANSFORMERS, ("w4a8", "w8a8"), _OF_TRANSFORMERS),
    ):
        if network in networks and bits in widths and recipe in rows:
            place = 2 * list(networks).index(network) + widths.index(bits)
            top1 = rows[recipe][place]
            return PublishedResult(top1, networks[network]) if top1 else None
    return None
