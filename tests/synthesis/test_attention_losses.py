"""The losses of images that read attention, each against its formula in float64 NumPy."""

import math

import numpy as np
import pytest
import torch

from synq_fast.synthesis.losses import (
    Alignment,
    Attended,
    AttentionEntropy,
    AttentionPrior,
    Heads,
    Moment,
    Start,
)
from synq_fast.synthesis.losses.attention import random_places
from tests.synthesis.shown import B, C, attended, numpy, seen


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
