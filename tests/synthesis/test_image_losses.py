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
    Alignment,
    Attended,
    AttentionEntropy,
    AttentionPrior,
    Classes,
    Deviations,
    Disagreement,
    Discrepancy,
    Enlarged,
    Heads,
    Margin,
    Moment,
    Patches,
    Prior,
    Roughness,
    Seen,
    SoftClasses,
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


def moment(done: float = 0.0, seed: int = 0, tokens: tuple[int, ...] = (10, 10)) -> Moment:
    shapes = tuple(torch.Size([2, 2, n, n]) for n in tokens)
    return Moment(done, B, torch.Generator().manual_seed(seed), shapes)


def test_attention_entropy():
    g = torch.Generator().manual_seed(4)
    # A class token before nine patches, and windows of four tokens, two for each image.
    logits = [torch.randn(B, 2, 10, 10, generator=g), torch.randn(B, 2, 3, 4, 4, generator=g)]
    logits = [x.requires_grad_() for x in logits]
    layers = tuple(Attended(x, x, x) for x in logits)
    loss = AttentionEntropy(rows=5)
    rows = loss.draw(moment(tokens=(10, 4)))
    assert [len(r) for r in rows] == [5, 4] and rows[1].tolist() == [0, 1, 2, 3]
    assert rows[0].max() < 9 and len(rows[0].unique()) == 5
    found = loss(seen(attentions=layers), *rows)
    exact = [x.detach().double().requires_grad_() for x in logits]
    entropies = []
    for x, own, first in zip(exact, rows, (1, 0), strict=True):
        values = []
        for image in x.flatten(0, -4):
            mean = image.mean(0)[first:, first:]
            vectors = [mean[n] / mean[n].norm() for n in own.tolist()]
            cosines = torch.stack([a @ b for a in vectors for b in vectors])
            spread = (cosines - cosines.mean()).square().mean() + 1e-8
            values.append(0.5 * torch.log(2 * math.pi * math.e * spread))
        entropies.append(torch.stack(values).mean())
    expected = -(entropies[0] + entropies[1]) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for slope, wanted in zip(
        torch.autograd.grad(found, logits), torch.autograd.grad(expected, exact), strict=True
    ):
        torch.testing.assert_close(slope, wanted.float(), rtol=1e-3, atol=1e-6)


def test_attention_entropy_of_equal_rows_stays_finite():
    flat = torch.zeros(1, 2, 10, 10, requires_grad=True)
    loss = AttentionEntropy()
    rows = loss.draw(moment(tokens=(10,)))
    loss(seen(attentions=(Attended(flat, flat, flat),)), *rows).backward()
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize("done", [0.0, 0.5, 1.0])
def test_alignment(done):
    loss = Alignment(first=0.8, last=0.2, dropped=0.3)
    one = seen()
    students = [
        torch.randn(B, 2, 10, 10, generator=torch.Generator().manual_seed(n)).requires_grad_()
        for n in (8, 9)
    ]
    counts, lots = loss.draw(moment(done))
    chosen = int((0.8 - 0.6 * done) * 9)
    stay = max(1, round(0.7 * chosen))
    assert counts.tolist() == [chosen, stay] and lots.shape == (B, 9)
    teachers = [x.logits.clone().requires_grad_() for x in one.attentions]
    layers = tuple(
        Attended(x, own.probabilities, own.output)
        for x, own in zip(teachers, one.attentions, strict=True)
    )
    x = seen(attentions=layers, student_attentions=tuple(students))
    found = loss(x, counts, lots)
    exact = [v.detach().double().requires_grad_() for v in (*teachers, *students)]
    scales = [own.output.shape[-1] ** -0.5 for own in one.attentions]
    rows = [s * v[:, :, 0, 1:].mean(1) for s, v in zip(2 * scales, exact, strict=True)]
    importance = ((rows[0] + rows[1]) / 2).detach()
    total, kept = 0, 0
    for n in range(B):
        best = sorted(range(9), key=importance[n].tolist().__getitem__)[-chosen:]
        some = sorted(best, key=lots[n].tolist().__getitem__)[:stay]
        kept += len(some)
        for t, q in ((rows[0], rows[2]), (rows[1], rows[3])):
            total = total + (t[n, some] - q[n, some]).abs().sum()
    expected = total / kept / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    slopes = torch.autograd.grad(found, (*teachers, *students))
    for slope, wanted in zip(slopes, torch.autograd.grad(expected, exact), strict=True):
        torch.testing.assert_close(slope, wanted.float(), rtol=1e-4, atol=1e-7)


def test_one_patch_stays_whatever_is_left_out():
    loss = Alignment(first=0.0, last=0.0, dropped=0.99)
    counts, _ = loss.draw(moment())
    assert counts.tolist() == [1, 1]


@pytest.mark.parametrize("kind", [AttentionEntropy, Alignment])
def test_draws_follow_from_the_generator(kind):
    found = [kind().draw(moment(seed=seed, tokens=(200, 200))) for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))
