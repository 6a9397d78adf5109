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
    Classes,
    Deviations,
    Disagreement,
    Discrepancy,
    Enlarged,
    Margin,
    Patches,
    Prior,
    Roughness,
    SoftClasses,
    SoftLabels,
    Start,
    Variation,
    named_losses,
)
from tests.synthesis.shown import B, C, D, numpy, seen, softmax


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


PLACES = torch.tensor([[4, 3, 2, 0], [0, 2, 3, 4], [1, 0, 2, 4]] * 2)


def regions(seed: int = 7) -> Enlarged:
    """Of two regions of each image."""
    g = torch.Generator().manual_seed(seed)
    places = torch.stack([torch.randperm(4, generator=g)[:2] for _ in range(B)], 1)
    labels = torch.stack([PLACES[torch.arange(B), p] for p in places]).flatten()
    return Enlarged(torch.randn(2 * B, C, generator=g) * 3, labels, places)


@pytest.mark.parametrize("kind", [Classes, SoftClasses])
def test_regions_add_their_own_mean(kind):
    one, loss = seen(), kind()
    held = soft_start(loss) if kind is SoftClasses else ()
    both = seen(enlarged=regions())
    # The same of the regions alone, as if they were the images.
    alone = seen(logits=both.enlarged.logits, labels=both.enlarged.labels)
    if held:
        chosen = [held[1][n % B, p] for n, p in enumerate(both.enlarged.places.flatten().tolist())]
        own = loss(alone, torch.stack(chosen), held[1])
    else:
        own = loss(alone)
    assert loss(both, *held).item() == pytest.approx((loss(one, *held) + own).item(), rel=1e-6)
    assert own > 0


def soft_start(loss: SoftClasses, places: torch.Tensor | None = PLACES, seed: int = 0):
    labels, g = seen().labels, torch.Generator().manual_seed(seed)
    return loss.begin(Start(labels, g, torch.zeros(C, 1), torch.zeros(C), (), places))


def test_soft_classes_name_every_class_of_an_image():
    loss = SoftClasses(low=5.0, high=10.0)
    image, places = soft_start(loss)
    assert image.shape == (B, C) and places.shape == (B, 4, C)
    for n, label in enumerate(seen().labels.tolist()):
        inside = {label, *PLACES[n].tolist()}
        for target, classes in (
            (image[n], inside),
            *zip(places[n], ({c} for c in PLACES[n].tolist()), strict=True),
        ):
            assert float(target.sum()) == pytest.approx(1, abs=1e-6)
            z = target.double().log()
            others = [c for c in range(C) if c not in classes]
            if others:
                # Background within 0 and 1, and 5 to 10 more at each class.
                assert z[others].max() - z[others].min() <= 1
                gaps = z[list(classes)] - z[others].min()
                assert gaps.min() >= 4 and gaps.max() <= 11
    alone, none = soft_start(loss, None)
    assert none.shape == (B, 0, C) and (alone.argmax(1) == seen().labels).all()


def test_soft_classes_against_their_formula():
    loss = SoftClasses()
    image, places = soft_start(loss)
    x = seen(enlarged=regions())
    logits, theirs = (v.clone().requires_grad_() for v in (x.logits, x.enlarged.logits))
    found = loss(seen(logits=logits, enlarged=x.enlarged._replace(logits=theirs)), image, places)
    exact = [v.detach().double().requires_grad_() for v in (logits, theirs)]
    total = 0
    for n in range(B):
        total = total - (image[n].double() * exact[0][n].log_softmax(0)).sum() / B
    for n, place in enumerate(x.enlarged.places.flatten().tolist()):
        target = places[n % B, place].double()
        total = total - (target * exact[1][n].log_softmax(0)).sum() / (2 * B)
    assert found.item() == pytest.approx(total.item(), rel=1e-6)
    for slope, wanted in zip(
        torch.autograd.grad(found, (logits, theirs)), torch.autograd.grad(total, exact), strict=True
    ):
        torch.testing.assert_close(slope, wanted.float(), rtol=1e-4, atol=1e-7)
    with pytest.raises(ModelError, match="1 logit per image"):
        loss(seen(logits=torch.zeros(B, 1)), image, places)


def test_discrepancy():
    one = seen()
    t, q = numpy(one.logits), numpy(one.student)
    assert Discrepancy()(one).item() == pytest.approx(-np.abs(t - q).mean(), rel=1e-6)
