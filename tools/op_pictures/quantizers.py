"""Ops that round to a grid: staircases over what they round, and their gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from synq_fast import ops

from .canvas import (
    FLOAT,
    FOURTH,
    LINE,
    QUANTIZED,
    THIRD,
    curve,
    float_curve,
    image,
    label,
    one_of_each,
    panels,
    slope,
    small_digits,
    teacher,
)

X = torch.linspace(-1.5, 2.5, 801)
RANGE = (-1.0, 2.0)


def _gradients(axes: Axes, x: Tensor, found: dict[str, Tensor]) -> None:
    label(axes, "gradient of x", "x")
    for (name, values), draw in zip(found.items(), (float_curve, curve), strict=True):
        draw(axes, x, values, name)
    axes.legend()


def fake_quantize() -> Figure:
    """A staircase of eight levels over the line y = x, flat outside the range from -1 to 2.

    Beside it the straight-through gradient: one everywhere with "identity", zero outside with
    "clip".
    """
    figure, (left, right) = panels(2)
    float_curve(left, X, X, "x")
    curve(left, X, ops.fake_quantize(X, *RANGE, 3), "fake_quantize(x)")
    label(left, "3 bits, range -1 to 2", "x")
    left.legend()
    found = {
        f'ste="{ste}"': slope(lambda x, ste=ste: ops.fake_quantize(x, *RANGE, 3, ste=ste), X)
        for ste in ("identity", "clip")
    }
    _gradients(right, X, found)
    right.set_ylim(-0.1, 1.5)
    return figure


def fake_quantize_dynamic() -> Figure:
    """Weights of six channels of a convolution beside their rounded values.

    Each channel has its own eight levels, from its minimum to its maximum; with symmetric=True they
    lie around zero.
    """
    figure, axes = panels(2)
    weights = teacher().module.get_parameter("conv1.weight").detach()[:6].flatten(1)
    for panel, symmetric in zip(axes, (False, True), strict=True):
        rounded, low, high = ops.fake_quantize_dynamic(weights, 3, axis=0, symmetric=symmetric)
        for channel in range(len(weights)):
            ends = torch.linspace(0, 1, 257) * (high[channel] - low[channel]) + low[channel]
            levels = ops.fake_quantize(ends, low[channel], high[channel], 3).unique()
            panel.hlines(levels, channel - 0.35, channel + 0.35, color=LINE, zorder=1)
        places = torch.arange(6)[:, None].expand_as(weights)
        panel.scatter(places - 0.15, weights, s=10, color=FLOAT, label="weights")
        panel.scatter(places + 0.15, rounded, s=10, color=QUANTIZED, marker="s", label="rounded")
        panel.axhline(0, color=LINE, linewidth=0.8, linestyle=":")
        label(panel, f"3 bits, symmetric={symmetric}", "channel")
        panel.set_ylim(weights.min() * 1.4, weights.max() * 1.6)
    axes[0].legend(loc="upper right", ncols=2)
    return figure


def fake_quantize_learned() -> Figure:
    """A staircase of eight levels with scale 2.5 and zero point 1.

    Beside it the gradients by place: that of x is one within the range; that of the scale is a saw
    of rounding errors within and flat outside; that of the zero point is zero within and constant
    outside.
    """
    figure, (left, right) = panels(2)
    scale, zero = torch.full_like(X, 2.5), torch.full_like(X, 1.0)

    def op(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return ops.fake_quantize_learned(x[:, None], scale, zero, 3, axis=0)[:, 0]

    float_curve(left, X, X, "x")
    curve(left, X, op(X, scale, zero), "fake_quantize_learned(x)")
    label(left, "3 bits, scale 2.5, zero point 1", "x")
    left.legend()
    label(right, "gradients", "x")
    styles = {"x": (FLOAT, "--"), "scale": (QUANTIZED, "-"), "zero_point": (THIRD, "-.")}
    for which, (name, (colour, style)) in enumerate(styles.items()):
        found = slope(op, X, scale, zero, which=which)
        curve(right, X, found, name, color=colour, linestyle=style)
    right.legend(loc="upper left", ncols=3, columnspacing=1)
    right.set_ylim(-1, 1.6)
    return figure


def fake_quantize_log() -> Figure:
    """A staircase over the line y = x whose steps halve towards zero, and the last code's zero.

    Beside it the same on logarithmic axes: steps of one width, each in the middle around its level.
    """
    figure, axes = panels(2)
    x = torch.linspace(0, 1.2, 2401)[1:]
    y = ops.fake_quantize_log(x, 1.0, 3)
    for panel, title in zip(axes, ("3 bits, scale 1", "the same, logarithmic"), strict=True):
        float_curve(panel, x, x, "x")
        curve(panel, x, y, "fake_quantize_log(x)")
        label(panel, title, "x")
    axes[1].legend(loc="upper left")
    axes[1].set_xscale("log", base=2)
    axes[1].set_yscale("log", base=2)
    return figure


def fake_quantize_minifloat() -> Figure:
    """A staircase of sixteen levels over a GELU, fine near its least value and coarse far above.

    Beside it what the levels miss, with the sixteen equal steps of the same range: less where most
    values are, more for the few large ones.
    """
    figure, (left, right) = panels(2)
    x = torch.linspace(-4, 4, 3201)
    y = functional.gelu(x)
    ends = -0.17, 0.17 * 23
    found = ops.fake_quantize_minifloat(y, *ends, 4)
    float_curve(left, x, y, "gelu(x)")
    curve(left, x, found, "fake_quantize_minifloat(gelu(x))")
    label(left, "4 bits, range -0.17 to 3.91", "x")
    left.set_ylim(-0.6, 6.4)
    left.legend(loc="upper left")
    float_curve(right, x, (ops.fake_quantize(y, *ends, 4) - y).abs(), "equal steps")
    curve(right, x, (found - y).abs(), "small floats")
    label(right, "distance from gelu(x)", "x")
    right.legend(loc="upper left")
    return figure


def quantize_codes() -> Figure:
    """A digit of 8 by 8 pixels, and the same with its integer code on each pixel.

    They go from -8, where it is black, to 7, where it is white.
    """
    figure, (left, right) = panels(2, 2.9)
    pixels = small_digits()[0]
    codes, scale, zero = ops.quantize_codes(pixels, 0.0, 1.0, 4)
    image(left, pixels, "x, from 0 to 1")
    image(right, pixels, f"codes of 4 bits, scale {scale.item():g}, zero point {zero.item():g}")
    for row, line in enumerate(codes.tolist()):
        for column, code in enumerate(line):
            ink = "black" if code > -2 else "white"
            right.text(column, row, code, color=ink, ha="center", va="center", fontsize=7)
    return figure


def relu_fake_quantize() -> Figure:
    """A staircase of eight levels from 0 to 2 that is zero left of zero.

    Beside it the gradient: zero left of zero, and with "clip" zero above the range too.
    """
    figure, (left, right) = panels(2)
    float_curve(left, X, X.relu(), "relu(x)")
    curve(left, X, ops.relu_fake_quantize(X, 0.0, 2.0, 3), "relu_fake_quantize(x)")
    label(left, "3 bits, range 0 to 2", "x")
    left.legend()
    found = {
        f'ste="{ste}"': slope(lambda x, ste=ste: ops.relu_fake_quantize(x, 0.0, 2.0, 3, ste=ste), X)
        for ste in ("identity", "clip")
    }
    _gradients(right, X, found)
    right.set_ylim(-0.1, 1.5)
    return figure


def affine_relu_fake_quantize() -> Figure:
    """Staircases of two channels over their lines relu(x * weight + bias).

    One is steep, one flat and shifted, both are on the same eight levels. Beside it a residual of 1
    moves both to the left.
    """
    figure, axes = panels(2)
    x = X.expand(1, 2, -1)
    weight, bias = torch.tensor([1.5, 0.5]), torch.tensor([0.0, 0.4])
    for panel, residual in zip(axes, (None, torch.ones_like(x)), strict=True):
        summand = 0.0 if residual is None else residual
        exact = (x * weight[:, None] + bias[:, None] + summand).relu()[0]
        found = ops.affine_relu_fake_quantize(x, weight, bias, 0.0, 2.0, 3, residual=residual)[0]
        for channel, colour in enumerate((QUANTIZED, THIRD)):
            float_curve(panel, X, exact[channel], "")
            title = f"x * {weight[channel]:g} + {bias[channel]:g}"
            curve(panel, X, found[channel], title, color=colour)
        label(panel, f"3 bits, residual {0 if residual is None else 1}", "x")
        panel.set_ylim(-0.1, 3.2)
        panel.legend(loc="upper left", title="relu of (dashed)", title_fontsize=8)
    axes[1].get_legend().remove()
    return figure


def gelu_fake_quantize() -> Figure:
    """A staircase over GELU's curve whose lowest level lies just below zero.

    Beside it the gradient: that of GELU where the grid reaches, zero above it.
    """
    return _over_curve("gelu", functional.gelu, ops.gelu_fake_quantize, 3.0, 3.0)


def silu_fake_quantize() -> Figure:
    """A staircase over SiLU's curve whose lowest level lies below zero.

    Beside it the gradient: that of SiLU where the grid reaches, zero above it.
    """
    return _over_curve("silu", functional.silu, ops.silu_fake_quantize, 3.0, 3.0)


def hardswish_fake_quantize() -> Figure:
    """A staircase of small floats over hard-swish's curve, fine near its least value.

    Beside it the gradient: that of hard-swish, which is steepest just below 3 and 1 from there on.
    """
    grid = {"grid": "minifloat"}
    return _over_curve(
        "hardswish", functional.hardswish, ops.hardswish_fake_quantize, 11.0, -4.0, **grid
    )


def _over_curve(
    name: str,
    function: Callable[[Tensor], Tensor],
    op: Callable[..., Tensor],
    scale: float,
    zero_point: float,
    **grid: str,
) -> Figure:
    """The function and its quantized form, and the slopes of both."""
    figure, (left, right) = panels(2)
    x = torch.linspace(-4, 4, 1601)

    def rounded(x: Tensor) -> Tensor:
        return op(x, scale, zero_point, 3, **grid)

    float_curve(left, x, function(x), f"{name}(x)")
    curve(left, x, rounded(x), f"{name}_fake_quantize(x)")
    levels = ", small floats" if grid else ""
    label(left, f"3 bits, scale {scale:g}, zero point {zero_point:g}{levels}", "x")
    left.legend()
    slopes = {name: slope(function, x), f"{name}_fake_quantize": slope(rounded, x)}
    _gradients(right, x, slopes)
    right.set_ylim(-0.6, 2.2)
    return figure


def layer_norm_fake_quantize() -> Figure:
    """A row of 24 values with a mean far from zero, and the same row normalised.

    The normalised values are shown with what they are rounded to, of eight levels.
    """
    figure, (left, right) = panels(2)
    row = 5 + 3 * torch.randn(24, generator=torch.Generator().manual_seed(3))
    places = torch.arange(24)
    left.bar(places, row, color=FLOAT)
    label(left, "x", "place in the row")
    normal = functional.layer_norm(row, (24,), eps=1e-6)
    found = ops.layer_norm_fake_quantize(row, None, None, 1.5, 0.0, 3)
    right.hlines(torch.arange(-4, 4) / 1.5, -0.5, 23.5, color=LINE, linewidth=0.6, zorder=0)
    right.scatter(places, normal, s=14, color=FLOAT, label="layer_norm(x)")
    right.scatter(places, found, s=14, color=QUANTIZED, marker="s", label="rounded")
    label(right, "3 bits, scale 1.5, zero point 0", "place in the row")
    right.set_ylim(-2.9, 3.9)
    right.legend(loc="upper left", ncols=2)
    return figure


def softmax_fake_quantize() -> Figure:
    """A staircase of eight levels over the probability of the first of two logits.

    The probability is a smooth step over their difference. Beside it a row of eight probabilities:
    small ones become zero.
    """
    figure, (left, right) = panels(2)
    gap = torch.linspace(-5, 5, 801)
    pairs = torch.stack([gap, torch.zeros_like(gap)], 1)
    float_curve(left, gap, pairs.softmax(1)[:, 0], "softmax")
    curve(left, gap, ops.softmax_fake_quantize(pairs, 7.0, 3)[:, 0], "softmax_fake_quantize")
    label(left, "two logits, 3 bits, scale 7", "difference of the logits")
    left.legend()
    row = torch.linspace(2.4, -1.2, 8)
    places = torch.arange(8)
    right.bar(places - 0.2, row.softmax(0), 0.38, color=FLOAT, label="softmax")
    found = ops.softmax_fake_quantize(row, 7.0, 3)
    right.bar(places + 0.2, found, 0.38, color=QUANTIZED, label="rounded")
    label(right, f"eight logits; the rounded ones sum to {found.sum():.2f}", "key")
    right.legend()
    return figure


def quantized_attention() -> Figure:
    """Three maps of attention of sixteen queries to sixteen keys, along the diagonal.

    The float one is smooth, that of four bits shows steps, and that of two bits keeps few keys a
    query.
    """
    figure, axes = panels(3, 2.45)
    places = torch.arange(16)[:, None] / 16 * torch.tensor([3.0, 7.0, 11.0])
    waves = torch.cat([places.sin(), places.cos()], 1)
    tokens = functional.pad(waves, (0, 10))[None, None]
    identity = torch.eye(16)[None, None]
    exact = (waves @ waves.mT * 1.5).softmax(-1)
    shown = {"cmap": "Blues", "vmax": exact.max().item()}
    image(axes[0], exact, "float", **shown)
    for panel, bits in zip(axes[1:], (4, 2), strict=True):
        codes = 2**bits - 1
        # The values are unit vectors on a grid that holds them, so the output is the probabilities.
        one = (float(codes), float(2 ** (bits - 1)))
        grid = (codes / 2, 0.5)
        # Probabilities here are below one half, and so is their grid.
        found = ops.quantized_attention(
            tokens, tokens, identity, *grid, *grid, *one, codes / 0.5, bits, alpha=1.5
        )
        image(panel, found[0, 0], f"{bits} bits", **shown)
    return figure


def random_mix() -> Figure:
    """A digit, its negative, and three mixtures of single pixels.

    With keep=0.25 most are those of the negative, with 0.75 most are those of the digit.
    """
    figure, axes = panels(5, 1.6)
    digit = one_of_each(3)[0, 0]
    image(axes[0], digit, "a")
    image(axes[1], 1 - digit, "b")
    for panel, keep in zip(axes[2:], (0.25, 0.5, 0.75), strict=True):
        image(panel, ops.random_mix(digit, 1 - digit, keep, 7), f"keep={keep}")
    return figure


def soft_round() -> Figure:
    """The share of a step that v adds, a smooth step from 0 to 1 that reaches both.

    Beside it the penalty over the share: zero at 0 and 1, and for a falling exponent ever more
    peaked at one half.
    """
    figure, (left, right) = panels(2)
    v = torch.linspace(-4, 4, 161)
    base = torch.zeros(1, dtype=torch.int8)
    shares = ops.soft_round(v, base.expand(161).contiguous(), 1.0, 0.0, 4, 2.0, axis=None)[0]
    curve(left, v, shares, color=QUANTIZED)
    label(left, "w * scale - base, the share of a step", "v")
    label(right, "penalty", "share")
    for exponent, colour in ((20.0, FLOAT), (8.0, THIRD), (2.0, FOURTH)):
        found = [
            ops.soft_round(one, base, 1.0, 0.0, 4, exponent, axis=None)[1] for one in v[:, None]
        ]
        curve(right, shares, torch.stack(found), f"exponent {exponent:g}", color=colour)
    right.legend(loc="lower center")
    return figure
