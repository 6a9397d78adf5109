"""Which recipe a model gets when none is named."""

from __future__ import annotations

import math

# Longest side in pixels up to which a recipe is taken: about midway, as a ratio, between the sizes
# that the recipes were made for (16, 32 and 224), because the cut-off of the low-pass filter and
# the number of steps follow the size.
_BY_SIZE = (
    ("synq-fast-digits", 22),
    ("synq-fast-cifar", 84),
    ("synq-fast-imagenet", math.inf),
)


def default_recipe(input_shape: tuple[int, int, int]) -> tuple[str, str]:
    """The recipe that suits a model, chosen by the size of its images.

    ========  ======================  ==========================
    longest   recipe                  made for
    ========  ======================  ==========================
    to 22     ``synq-fast-digits``    the embedded digits, 16 px
    to 84     ``synq-fast-cifar``     CIFAR, 32 px
    above     ``synq-fast-imagenet``  ImageNet, 224 px
    ========  ======================  ==========================

    All of them are for convolutional networks, best with BatchNorm.

    Args:
        input_shape: (C, H, W) of one image.

    Returns:
        The recipe's name, and why it was taken.
    """
    _, height, width = input_shape
    name = next(name for name, longest in _BY_SIZE if max(height, width) <= longest)
    return name, f"for images of {height} x {width} pixels"
