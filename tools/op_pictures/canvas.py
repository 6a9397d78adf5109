"""What all pictures share: size, colours, kinds of axes and the digits."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from synq_fast.data.digits import DIGITS_FILE, digits_test
from synq_fast.models import Teacher, load_teacher
from synq_fast.reporting.figures.plot import OF_PICTURE, settings

# A function that draws one picture; its docstring is the text for those who do not see it.
Picture = Callable[[], Figure]

WIDTH, DPI, COLOURS = 6.6, 130, 256
MUTED, LINE = OF_PICTURE.muted, OF_PICTURE.line
FLOAT, QUANTIZED, THIRD, FOURTH = OF_PICTURE.series[:4]
_STYLE = settings(OF_PICTURE) | {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "legend.fontsize": 8,
    "legend.frameon": False,
}


def save(picture: Picture, path: Path) -> None:
    """Draw and write a picture, in few colours, which halves the file."""
    drawn = io.BytesIO()
    with mpl.rc_context(_STYLE):
        picture().savefig(drawn, format="png", dpi=DPI)
    image = Image.open(drawn).convert("RGB")
    few = image.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def panels(
    count: int, height: float = 2.3, widths: list[float] | None = None, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure with panels beside each other, in rows."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    ratios = {"width_ratios": widths} if widths else {}
    axes = figure.subplots(rows, count, squeeze=False, gridspec_kw=ratios)
    return figure, list(axes.flat)


def label(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    """Say what a panel shows."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def whole_numbers(axes: Axes) -> None:
    """Ticks for channels, steps and the like."""
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def curve(axes: Axes, x: Tensor, y: Tensor, name: str = "", **style: Any) -> None:
    """A line, by default that of quantized values."""
    axes.plot(x.detach().numpy(), y.detach().numpy(), label=name, **{"color": QUANTIZED} | style)


def float_curve(axes: Axes, x: Tensor, y: Tensor, name: str) -> None:
    """What would be computed without a quantizer."""
    curve(axes, x, y, name, color=FLOAT, linewidth=1.2, linestyle="--")


def image(axes: Axes, pixels: Tensor, title: str, **style: Any) -> Any:
    """An image (H, W) without ticks."""
    axes.set_title(title, loc="center")
    axes.set_axis_off()
    return axes.imshow(
        pixels.detach().numpy(),
        **{"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"} | style,
    )


def slope(function: Callable[..., Tensor], *leaves: Tensor, which: int = 0) -> Tensor:
    """The gradient of the sum of a function's values in one of its arguments."""
    given = [leaf.clone().requires_grad_(n == which) for n, leaf in enumerate(leaves)]
    return torch.autograd.grad(function(*given).sum(), given[which])[0]


@cache
def small_digits() -> Tensor:
    """The embedded digits as they were scanned, (360, 8, 8) from 0 to 1."""
    with np.load(DIGITS_FILE) as arrays:
        return torch.from_numpy(arrays["images"].astype(np.float32)) / 16


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Images (360, 1, 16, 16) from 0 to 1 and their labels."""
    images, labels = digits_test()
    return torch.from_numpy(images), torch.from_numpy(labels).long()


def one_of_each(*classes: int) -> Tensor:
    """The first image of each class, (N, 1, 16, 16)."""
    images, labels = digits()
    return torch.stack([images[labels == label][0] for label in classes])


@cache
def teacher() -> Teacher:
    """The embedded network."""
    return load_teacher("digits-resnet20")


def features_and_logits(layer: str, images: Tensor, inputs: bool = False) -> tuple[Tensor, Tensor]:
    """What a layer of the network receives or returns, and the logits that follow from it."""
    found: list[Tensor] = []
    module = teacher().module.get_submodule(layer)
    keep = module.register_forward_hook(
        lambda _, given, result: found.append(given[0] if inputs else result)
    )
    logits = teacher().module((images - teacher().mean[0]) / teacher().std[0])
    keep.remove()
    return found[0], logits


def features(layer: str, images: Tensor, inputs: bool = False) -> Tensor:
    """What a layer of the network receives or returns, without a graph."""
    with torch.no_grad():
        return features_and_logits(layer, images, inputs)[0]
