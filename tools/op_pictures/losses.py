"""Ops that compare."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from synq_fast import ops

from .canvas import (
    FLOAT,
    FOURTH,
    QUANTIZED,
    THIRD,
    curve,
    digits,
    features,
    image,
    label,
    one_of_each,
    panels,
    teacher,
    whole_numbers,
)


def _noise(count: int) -> Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def _batches() -> dict[str, tuple[Tensor, str]]:
    """What normalisations are shown with: images and their colour."""
    return {"digits": (digits()[0][:64], FLOAT), "noise": (_noise(64), QUANTIZED)}


def distillation_loss() -> Figure:
    """The divergence over how far the student moves one of three logits.

    It is zero where the logit is the teacher's, nearly a parabola at temperature 20 and lopsided at
    1. Beside it difficulty and cross-entropy over the teacher's own logit: the cross-entropy counts
    once the sample is easy enough.
    """
    figure, (left, right) = panels(2)
    teachers, label_of = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    gaps = torch.linspace(-4, 4, 81)
    label(left, "kl, alpha 1", "difference of one logit")
    for temperature, colour in ((1.0, FLOAT), (2.0, THIRD), (20.0, FOURTH)):
        options = {"temperature": temperature, "alpha": 1.0}
        found = [
            ops.distillation_loss(teachers + gap * torch.eye(3)[:1], teachers, label_of, **options)[
                0
            ]
            for gap in gaps
        ]
        curve(left, gaps, torch.stack(found), f"temperature {temperature:g}", color=colour)
    left.legend()
    label(right, "one sample, threshold 0.5", "the teacher's logit of the label")
    certain = torch.linspace(-3, 4, 281)[:, None]
    logits = torch.cat([certain, torch.zeros(281, 2)], 1)
    parts = [ops.distillation_loss(row[None], row[None], label_of) for row in logits]
    curve(right, certain[:, 0], torch.stack([part[2][0] for part in parts]), "difficulty")
    curve(right, certain[:, 0], torch.stack([part[1] for part in parts]), "ce", color=FLOAT)
    right.legend()
    return figure


def bn_statistics_loss() -> Figure:
    """How far means and variances of a batch's channels are from the stored ones.

    The differences at the first normalisation are small for digits and large for noise; the losses
    in the legends say the same.
    """
    figure, axes = panels(2)
    bn = teacher().module.get_submodule("bn1")
    assert isinstance(bn, nn.BatchNorm2d)
    places = torch.arange(bn.num_features)
    for offset, (name, (images, colour)) in zip((-0.2, 0.2), _batches().items(), strict=True):
        x = features("bn1", images, inputs=True)
        losses = ops.bn_statistics_loss(x, bn.running_mean, bn.running_var)
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        differences = (mean - bn.running_mean, variance - bn.running_var)
        for panel, values, loss in zip(axes, differences, losses, strict=True):
            text = f"{name}: loss {loss.item():.2g}"
            panel.bar(places + offset, values.detach(), 0.4, color=colour, label=text)
    for panel, what in zip(axes, ("mean", "variance"), strict=True):
        label(panel, f"{what} less the stored one", "channel")
        whole_numbers(panel)
        low, high = panel.get_ylim()
        panel.set_ylim(low, high + 0.45 * (high - low))
        panel.legend(loc="upper left")
    return figure


def bn_statistics_losses() -> Figure:
    """The loss of each of the network's normalisations on a logarithmic scale.

    For digits it stays far below that for noise. The legend has their averages, which the op
    returns.
    """
    figure, (axes,) = panels(1)
    layers = {
        name: layer
        for name, layer in teacher().module.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
    }
    means = [layer.running_mean for layer in layers.values()]
    variances = [layer.running_var for layer in layers.values()]
    for name, (images, colour) in _batches().items():
        inputs = [features(layer, images, inputs=True) for layer in layers]
        single = [
            ops.bn_statistics_losses([x], [mean], [variance])
            for x, mean, variance in zip(inputs, means, variances, strict=True)
        ]
        whole = ops.bn_statistics_losses(inputs, means, variances)
        text = f"{name}: {whole.item():.2g}"
        curve(axes, torch.arange(len(single)), torch.stack(single), text, color=colour, marker="o")
    axes.set_yscale("log")
    axes.set_xticks(range(0, len(layers), 3))
    label(axes, "mean and variance loss", "normalisation")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def channel_moments() -> Figure:
    """A histogram of one channel's values, their mean, and a band of one deviation around.

    Beside it mean and deviation of all sixteen channels for two digits.
    """
    figure, (left, right) = panels(2)
    x = features("bn1", one_of_each(0, 1), inputs=True)
    mean, variance = ops.channel_moments(x)
    channel, deviation = 0, variance.sqrt()
    left.hist(x[0, channel].flatten().numpy(), 24, color=FLOAT)
    middle, wide = mean[0, channel].item(), deviation[0, channel].item()
    left.axvline(middle, color=QUANTIZED, label="mean")
    left.axvspan(middle - wide, middle + wide, color=QUANTIZED, alpha=0.15, label="deviation")
    label(left, "one channel of one image", "x", "positions")
    left.legend()
    places = torch.arange(mean.shape[1])
    for image_of, colour in enumerate((FLOAT, QUANTIZED)):
        right.errorbar(
            places + 0.3 * image_of,
            mean[image_of],
            deviation[image_of],
            fmt="o",
            markersize=3,
            linewidth=1,
            color=colour,
            label=f"digit {image_of}",
        )
    label(right, "mean and deviation of each channel", "channel")
    whole_numbers(right)
    right.margins(y=0.25)
    right.legend(loc="upper left", ncols=2)
    return figure


def patch_similarity_entropy() -> Figure:
    """The cosine similarities of the places of a digit, and those of an even image.

    They are of every strength for the digit and mostly high for the even image. Beside them the
    densities of both with their entropies: broad and higher for the digit, peaked and lower for the
    even image.
    """
    figure, axes = panels(3, 2.3, [1, 1, 1.5])
    even = torch.full((1, 1, 16, 16), 0.5) + 0.02 * _noise(1)
    tokens = features("layer2", torch.cat([one_of_each(0), even])).flatten(2).mT.contiguous()
    bandwidth = 0.03
    found = ops.patch_similarity_entropy(tokens, points=100, bandwidth=bandwidth)
    unit = functional.normalize(tokens, dim=-1)
    similar = unit @ unit.mT
    names = ("digit", "even image")
    for panel, matrix, name in zip(axes[:2], similar, names, strict=True):
        image(panel, matrix, f"similarities, {name}", cmap="Blues", vmin=similar.min())
    x = torch.linspace(similar.min().item(), 1.0, 200)
    for values, name, entropy, colour in zip(
        similar, names, found, (FLOAT, QUANTIZED), strict=True
    ):
        kernels = torch.distributions.Normal(values.flatten(), bandwidth).log_prob(x[:, None]).exp()
        text = f"{name}: {entropy.item():.2f}"
        curve(axes[2], x, kernels.mean(1), text, color=colour)
    label(axes[2], "density; entropy in the legend", "similarity")
    axes[2].legend()
    return figure


def structural_similarity_loss() -> Figure:
    """A channel of a teacher over the positions, and of three students with their losses.

    One that lies higher by a constant has loss 0, one of half the height and one with noise have
    0.2. Beside them the loss over the student's height: least where it is the teacher's, 1 where
    the student is flat, 2 where it is the teacher turned around; with noise all is less steep.
    """
    figure, (left, right) = panels(2)
    places = torch.arange(49.0)
    teacher_of = torch.sin(places / 5) + 0.5 * torch.sin(places / 2.1)
    noise = 0.5 * torch.randn(49, generator=torch.Generator().manual_seed(0))

    def loss(student: Tensor) -> Tensor:
        return ops.structural_similarity_loss(
            teacher_of.view(1, 1, -1, 1), student.view(1, 1, -1, 1)
        )

    curve(left, places, teacher_of, "teacher", color=FLOAT, linewidth=2)
    students = {
        "higher": (teacher_of + 1.5, QUANTIZED),
        "half": (teacher_of / 2, THIRD),
        "with noise": (teacher_of + noise, FOURTH),
    }
    for name, (student, colour) in students.items():
        text = f"{name}: {abs(loss(student).item()):.2f}"
        curve(left, places, student, text, color=colour, linewidth=1.1)
    label(left, "one channel; loss in the legend", "position")
    left.set_ylim(-2.2, 5.2)
    left.legend(loc="upper right", ncols=2)
    heights = torch.linspace(-2, 4, 121)
    for name, added, colour in (("alone", 0.0, QUANTIZED), ("with noise", 1.0, FOURTH)):
        found = torch.stack([loss(height * teacher_of + added * noise) for height in heights])
        curve(right, heights, found, name, color=colour)
    label(right, "loss", "student's height, in that of the teacher")
    right.legend()
    return figure


def _looking_at(row: float, column: float) -> Tensor:
    """Logits of a query over 14 x 14 patches that are greatest at one place, (196,)."""
    ticks = torch.arange(14.0)
    distance = (ticks[:, None] - row).square() + (ticks[None] - column).square()
    return torch.exp(-distance / 18).flatten()


def inter_head_similarity_loss() -> Figure:
    """What two heads look at from one query, and the same two turned around.

    Each is greatest around one place. Beside them the loss over the distance of these places: zero
    at the same place, it grows until they have nothing in common. Turning one head around gives
    another curve, since the means of its logits differ from those of the first.
    """
    figure, axes = panels(4, 1.9, [1, 1, 1, 1.9])
    one, other = _looking_at(4, 4), _looking_at(8, 9)
    for panel, logits, name in zip(
        axes, (one, other, -other), ("a head", "another", "turned around"), strict=False
    ):
        image(panel, logits.view(14, 14), name, cmap="Blues", vmin=logits.min(), vmax=logits.max())
    distances = torch.linspace(0, 9, 46)
    for name, sign, colour in (("as they are", 1, QUANTIZED), ("one turned around", -1, FLOAT)):
        pairs = [
            torch.stack([one, sign * _looking_at(4, 4 + distance)]).view(1, 2, 1, -1)
            for distance in distances.tolist()
        ]
        found = torch.stack([ops.inter_head_similarity_loss(pair) for pair in pairs])
        curve(axes[3], distances, found, name, color=colour)
    label(axes[3], "loss of two heads", "patches between their places")
    axes[3].set_ylim(-0.03, 0.75)
    axes[3].legend(fontsize=7)
    return figure
