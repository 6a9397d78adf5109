"""Which recipe a model gets when none is named."""

from __future__ import annotations

import math

from synq_fast.quant.bits import HIGHEST

# Longest side in pixels up to which a recipe is taken: about midway, as a ratio, between the sizes
# that the recipes were made for (16, 32 and 224), because the cut-off of the low-pass filter and
# the number of steps follow the size.
_BY_SIZE = (
    ("synq-fast-digits", 22),
    ("synq-fast-cifar", 84),
    ("synq-fast-imagenet", math.inf),
)
_LARGEST = _BY_SIZE[-1][0]


def default_recipe(
    input_shape: tuple[int, int, int], *, attends: bool = False, lowest: int = 2
) -> tuple[str, str]:
    """The recipe that suits a model, chosen by the size of its images and by what it is made of.

    ========  ======================  ==========================
    longest   recipe                  made for
    ========  ======================  ==========================
    to 22     ``synq-fast-digits``    the embedded digits, 16 px
    to 84     ``synq-fast-cifar``     CIFAR, 32 px
    above     ``synq-fast-imagenet``  ImageNet, 224 px
    ========  ======================  ==========================

    These are for convolutional networks, best with BatchNorm. Transformers without it get
    ``synq-fast-vit``. Where all is to have 8 bits, transformers and networks above 84 pixels get
    ``synq-fast-vit-8bit`` and ``synq-fast-imagenet-8bit``, which train nothing.

    Args:
        input_shape: (C, H, W) of one image.
        attends: whether it is a transformer without BatchNorm statistics.
        lowest: the least number of bits that is asked for.

    Returns:
        The recipe's name, and why it was taken.
    """
    if attends and lowest >= HIGHEST:
        return "synq-fast-vit-8bit", f"for a transformer at {HIGHEST} bits"
    if attends:
        return "synq-fast-vit", "for a transformer"
    _, height, width = input_shape
    name = next(name for name, longest in _BY_SIZE if max(height, width) <= longest)
    reason = f"for images of {height} x {width} pixels"
    if name == _LARGEST and lowest >= HIGHEST:
        return f"{name}-8bit", f"{reason} at {HIGHEST} bits"
    return name, reason
