"""The losses of images, each against its formula in float64 NumPy."""

import math

import numpy as np
import pytest
import torch

from synq_fast import reference
from synq_fast.errors import ModelError
from synq_fast.synthesis.losses import (
    GENERATOR_LOSSES,
    IMAGE_LOSSES,
    Attended,
    AttentionPrior,
    Deviations,
    Disagreement,
    Heads,
    Margin,
    Patches,
    Prior,
    Roughness,
    Seen,
    SoftLabels,
    Start,
    Variation,
    named_losses,
)
from synq_fast.synthesis.losses.attention import random_places

B, C, D = 6, 5, 7


def seen(**changes) -> Seen:
    g = torch.Generator().manual_seed(3)
    norms = tuple(torch.randn(B, c, 4, 3, generator=g) * 2 + 1 for c in (2, 3))
    values = {
        "images": torch.randn(B, 3, 5, 4, generator=g) * 3 - 1,
        "labels": torch.randint(C, (B,), generator=g),
        "logits": torch.randn(B, C, generator=g) * 3,
        "features": torch.randn(B, D, generator=g),
        "norms": norms,
        "attentions": tuple(attended(g, c) for c in (4, 3)),
        "running": [(torch.randn(c, generator=g), torch.rand(c, generator=g)) for c in (2, 3)],
        "student": torch.randn(B, C, generator=g) * 3,
    }
    return Seen(**(values | changes))


def attended(g: torch.Generator, width: int, tokens: int = 10) -> Attended:
    """Of two heads, and a class token before the patches."""
    logits = torch.randn(B, 2, tokens, tokens, generator=g)
    values = torch.randn(B, 2, tokens, width, generator=g)
    return Attended(logits, logits.softmax(-1), logits.softmax(-1) @ values)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().astype(np.float64)


def test_deviations():
    one = seen()
    expected = 0.0
    for x, (mean, variance) in zip(one.norms, one.running, strict=True):
        values = numpy(x).transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
        expected += ((values.mean(1) - numpy(mean)) ** 2).mean()
        stored = np.sqrt(numpy(variance) + 1e-6)
        expected += ((values.std(1, ddof=1) - stored) ** 2).mean()
    assert Deviations()(one).item() == pytest.approx(expected, rel=1e-5)


def test_prior():
    one = seen()
    x = numpy(one.images)
    terms = x.mean((2, 3)) ** 2 + (x.std((2, 3), ddof=1) - 1) ** 2
    assert Prior()(one).item() == pytest.approx(terms.sum(1).mean(), rel=1e-5)
    flat = torch.zeros(2, 3, 4, 4, requires_grad=True)
    Prior()(seen(images=flat)).backward()
    assert flat.grad.isfinite().all()


def test_variation_does_not_grow_with_the_size_of_images():
    values = [Variation()(seen(images=torch.randn(2, 3, n, n))).item() for n in (64, 128)]
    assert values == pytest.approx([4 * 2**0.5] * 2, rel=0.03)


def test_soft_labels():
    one = seen()
    start = Start(
        torch.zeros(4000, dtype=torch.int64),
        torch.Generator().manual_seed(0),
        torch.zeros(C, 1),
        torch.zeros(C),
    )
    loss = SoftLabels(lowest=0.6)
    (targets,) = loss.begin(start)
    assert (targets == 1).float().mean().item() == pytest.approx(0.5, abs=0.05)
    rest = targets[targets < 1]
    assert rest.min() >= 0.6 and rest.mean().item() == pytest.approx(0.8, abs=0.02)
    p = softmax(numpy(one.logits), 1)[np.arange(B), one.labels]
    expected = ((p - numpy(targets[:B])) ** 2).mean()
    assert loss(one, targets[:B]).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ModelError, match="1 logit per image"):
        loss(seen(logits=torch.zeros(B, 1)), targets[:B])


def test_margin():
    one = seen(labels=torch.tensor([0, 1, 1, 2, 3, 4]))
    means = torch.randn(C, D)
    counts = torch.tensor([2.0, 3.0, 1.0, 0.0, 5.0])
    loss = Margin(low=0.9, high=1.1)
    held = loss.begin(Start(one.labels, torch.Generator(), means, counts))
    total = 0.0
    for image, label in enumerate(one.labels.tolist()):
        if label != 3:
            a, b = numpy(one.features)[image], numpy(means)[label]
            distance = 1 - a @ b / np.sqrt((a @ a) * (b @ b))
            total += max(0, 0.9 - distance) + max(0, distance - 1.1)
    assert loss(one, *held).item() == pytest.approx(total / 5, rel=1e-5)
    nothing = Start(one.labels, torch.Generator(), torch.zeros(C, 1), torch.zeros(C))
    assert loss(one, *loss.begin(nothing)).item() == 0


def test_disagreement():
    one = seen()
    t, q, y = numpy(one.logits), numpy(one.student), one.labels.numpy()
    apart, together = softmax(t - q, 1), softmax(t + q, 1)
    entropy = -(apart * np.log(apart)).sum(1)
    scaled = (entropy - entropy.min()) / (np.log(C) - entropy.min())
    expected = np.maximum(0, 0.3 - scaled).mean() + np.maximum(0, scaled - 0.5).mean()
    expected += -0.4 * np.log(apart[np.arange(B), y]).mean()
    expected += -0.2 * np.log(together[np.arange(B), y]).mean()
    loss = Disagreement(low=0.3, high=0.5, difference=0.4, agreement=0.2)
    assert loss(one).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("student", [0.0, 1e4])
def test_disagreement_stays_finite(student):
    logits = torch.full((B, C), student, requires_grad=True)
    Disagreement()(seen(logits=logits, student=torch.zeros(B, C))).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("registry", [IMAGE_LOSSES, GENERATOR_LOSSES])
def test_losses_of_weight_zero_are_left_out_and_the_order_is_the_registrys(registry):
    losses = [kind(weight=float(index % 2)) for index, kind in enumerate(registry.values())]
    assert list(named_losses(registry, losses[::-1])) == list(registry)[1::2]


def test_patches():
    one = seen()
    total = 0.0
    for layer in one.attentions:
        # Of ten tokens the last nine are a square of patches.
        tokens = layer.output.mean(1)[:, 1:]
        total -= float(reference.patch_similarity_entropy(tokens).mean())
    assert Patches()(one).item() == pytest.approx(total, rel=1e-5)
    windows = torch.randn(2, 3, 2, 9, 4)
    layers = [(Attended(x, x, x),) for x in (windows, windows.flatten(0, 1))]
    values = [Patches()(seen(attentions=layer)).item() for layer in layers]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_roughness():
    labels, generator = torch.zeros(32, dtype=torch.int64), torch.Generator().manual_seed(0)
    loss = Roughness(low=2500.0, high=3000.0)
    start = Start(labels, generator, torch.zeros(C, 1), torch.zeros(C))
    drawn = [float(loss.begin(start)[0]) for _ in range(200)]
    assert 2500 <= min(drawn) < 2550 and 2950 < max(drawn) <= 3000
    for count, side in ((32, 224), (8, 224), (32, 56)):
        images = torch.randn(count, 3, side, side)
        x = numpy(images)
        differences = (
            x[..., 1:] - x[..., :-1],
            x[:, :, 1:] - x[:, :, :-1],
            x[:, :, 1:, 1:] - x[:, :, :-1, :-1],
            x[:, :, 1:, :-1] - x[:, :, :-1, 1:],
        )
        variation = sum(np.sqrt((d.astype(np.float64) ** 2).sum()) for d in differences)
        expected = abs(variation - 2700 * math.sqrt(count / 32) * side / 224)
        assert loss(seen(images=images), torch.tensor(2700.0)).item() == pytest.approx(
            expected, rel=1e-4
        )


def begun(loss, shapes=()) -> tuple[torch.Tensor, ...]:
    labels = torch.zeros(B, dtype=torch.int64)
    nothing = torch.zeros(C, 1), torch.zeros(C)
    return loss.begin(Start(labels, torch.Generator().manual_seed(1), *nothing, shapes))


def test_attention_prior():
    g = torch.Generator().manual_seed(5)
    # Four layers, of which two are deep; the last has windows of two per image without a class.
    layers = tuple(attended(g, 4) for _ in range(3))
    logits = torch.randn(2 * B, 3, 4, 4, generator=g)
    layers += (Attended(logits, logits.softmax(-1), logits.softmax(-1)),)
    one, loss = seen(attentions=layers), AttentionPrior(weight=1.0)
    shapes = tuple(torch.Size([2, *x.logits.shape[1:]]) for x in layers[:3])
    places = begun(loss, (*shapes, torch.Size([4, 3, 4, 4])))
    assert [tuple(p.shape) for p in places] == [(B, 2, 9), (1, 3, 4)]
    for place in places:
        assert torch.allclose(place.sum(-1), torch.ones(place.shape[:2]), atol=1e-6)
    looked = numpy(layers[2].probabilities)[:, :, 0, 1:]
    third = ((looked - numpy(places[0])) ** 2).mean(-1).sum(-1).mean()
    looked = numpy(layers[3].probabilities).mean(-2)
    fourth = ((looked - numpy(places[1])) ** 2).mean(-1).sum(-1).mean()
    assert loss(one, *places).item() == pytest.approx(3 / 4 * third + fourth, rel=1e-5)


def test_places_differ_and_stay_together():
    places = random_places(500, 14, torch.Generator().manual_seed(0))
    assert places.shape == (500, 196) and places.min() >= 0
    peaks = places.argmax(1)
    assert len(peaks.unique()) > 100
    # A place is a few patches: half of the sum lies on far fewer than half of them.
    top = places.sort(1, descending=True).values.cumsum(1)
    assert int((top < 0.5).sum(1).max()) < 60


def test_heads():
    one = seen()
    expected = []
    for layer in one.attentions:
        x = numpy(layer.logits)[:, :, 1:, 1:]
        low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
        a = (x - low) / (high - low + 1e-8)
        for image in a:
            for query in range(9):
                for first in image[:, query]:
                    for second in image[:, query]:
                        m, n = first.mean(), second.mean()
                        c = ((first - m) * (second - n)).mean()
                        s = (2 * m * n + 1e-4) / (m * m + n * n + 1e-4)
                        s *= (2 * c + 9e-4) / (first.var() + second.var() + 9e-4)
                        expected.append(1 - s * s)
    assert Heads()(one).item() == pytest.approx(np.mean(expected), rel=1e-4)
    flat = torch.zeros(1, 2, 10, 10, requires_grad=True)
    Heads()(seen(attentions=(Attended(flat, flat, flat),))).backward()
    assert flat.grad.isfinite().all()
