"""Images and maps as data in a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from torch import Tensor

_SMALL = 96
"""Sides up to which a picture is kept exactly; larger ones are JPEGs."""


def picture(image: Tensor) -> str:
    """A data URI of an image (C, H, W) on a scale from 0 to 1, clipped; C is 1 or 3.

    Of any other number of channels the first is shown.
    """
    if image.shape[0] not in (1, 3):
        image = image[:1]
    return _encoded(image.float().clamp(0, 1).permute(1, 2, 0).cpu().numpy())


def overlay(image: Tensor, values: Tensor) -> str:
    """A map (H, W) in [0, 1] over a grey image (C, H, W): the higher, the more of its colour."""
    grey = image.float().clamp(0, 1).mean(0).cpu().numpy()[..., None]
    share = 0.8 * values.float().clamp(0, 1).cpu().numpy()[..., None]
    return _encoded(0.75 * grey * (1 - share) + _coloured(values) * share)


def heat(values: Tensor, low: float, high: float) -> str:
    """Values (H, W) between two ends as colours."""
    return _encoded(_coloured((values - low) / max(1e-9, high - low)))


def _coloured(values: Tensor) -> np.ndarray:
    import matplotlib as mpl

    colours: np.ndarray = mpl.colormaps["viridis"](values.float().clamp(0, 1).cpu().numpy())
    return colours[..., :3]


def _encoded(pixels: np.ndarray) -> str:
    from PIL import Image

    array = (pixels * 255).round().astype(np.uint8)
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    buffer = io.BytesIO()
    small = max(image.size) <= _SMALL
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=85, subsampling=0)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
