"""The losses of AdaDFQ, PLF and GDFQ, each against its formula in float64."""

import math

import pytest
import torch

from synq_fast.errors import ModelError
from synq_fast.finetune.losses import (
    Batch,
    Disagreement,
    Distillation,
    FeatureDistance,
    HeadSimilarity,
    LogitDistance,
    PseudoLabels,
    View,
)
from synq_fast.finetune.micro_batch import backward_in_parts
from synq_fast.finetune.step import Step
from synq_fast.graph.attention import Attention
from synq_fast.graph.structure import Structure
from synq_fast.graph.taps import Tap
from tests.tiny import tiny_images, tiny_labels, tiny_pair, tiny_recipe

BATCH, CLASSES = 6, 5
LABELS = torch.arange(BATCH) % CLASSES


def logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(BATCH, CLASSES, generator=torch.Generator().manual_seed(seed))


def values_and_gradient(loss, student, teacher, **options):
    """The loss's values, and the gradient of their sum in the student's logits."""
    student = student.clone().requires_grad_()
    values = loss(View(student), View(teacher), Batch(LABELS, (8, 8), **options))
    return torch.stack(values).detach(), torch.autograd.grad(sum(values), student)[0]


def compare(loss, formula, student, teacher, **options):
    values, gradient = values_and_gradient(loss, student, teacher, **options)
    exact = student.double().requires_grad_()
    expected = formula(exact, teacher.double())
    torch.testing.assert_close(values, torch.stack(expected).detach().float(), rtol=1e-5, atol=1e-5)
    (slope,) = torch.autograd.grad(sum(expected), exact)
    torch.testing.assert_close(gradient, slope.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_disagreement_is_minus_the_entropy_of_the_difference(temperature, scale):
    def formula(q, t):
        d = ((t - q) / temperature).softmax(1)
        entropy = -(d * d.log()).sum(1)
        return [-0.7 * temperature**2 * entropy.mean()]

    loss = Disagreement(weight=0.7, temperature=temperature)
    compare(loss, formula, logits(0, scale), logits(1, scale))


def test_disagreement_is_least_where_the_logits_differ_by_a_constant():
    teacher = logits(1)
    values, gradient = values_and_gradient(Disagreement(), teacher + 7.0, teacher)
    assert values.item() == pytest.approx(-400 * math.log(CLASSES), rel=1e-6)
    assert gradient.abs().max() < 1e-4
    assert values_and_gradient(Disagreement(), logits(2), teacher)[0] > values


@pytest.mark.parametrize("spread", [1e3, 1e4])
def test_disagreement_is_finite_far_from_the_teacher(spread):
    values, gradient = values_and_gradient(
        Disagreement(temperature=1.0), logits(2, spread), logits(1, spread)
    )
    assert values.isfinite().all() and gradient.isfinite().all()


def test_logits_of_half_precision_are_compared_in_float32():
    student, teacher = logits(0).bfloat16(), logits(1).bfloat16()
    for loss in (Disagreement(), PseudoLabels()):
        values = values_and_gradient(loss, student, teacher)[0]
        exact = values_and_gradient(loss, student.float(), teacher.float())[0]
        assert values.dtype == torch.float32
        assert torch.equal(values, exact)


def pseudo_labels(done: float, first: float, last: float):
    """PLF's labels image by image."""

    def formula(q, t):
        sums = [q.new_zeros(()), q.new_zeros(())]
        for student, teacher in zip(q, t, strict=True):
            p = teacher.softmax(0)
            entropy = -(p * p.log()).sum().item() / math.log(CLASSES)
            log_q = student.log_softmax(0)
            c1, c2 = sorted(range(CLASSES), key=lambda c: -p[c].item())[:2]
            if entropy <= first - done * (first - last):
                sums[0] = sums[0] - log_q[c1]
            else:
                whole = p[c1] + p[c2]
                sums[1] = sums[1] - (p[c1] / whole * log_q[c1] + p[c2] / whole * log_q[c2])
        return [1.5 * sums[0] / BATCH, 0.3 * sums[1] / BATCH]

    return formula


@pytest.mark.parametrize("done", [0.0, 0.5, 1.0])
def test_pseudo_labels_follow_the_teacher_as_far_as_it_is_sure(done):
    student, teacher = logits(0), logits(6)
    loss = PseudoLabels(1.5, 0.3, (0.9, 0.05))
    values, _ = values_and_gradient(loss, student, teacher, done=torch.tensor(done))
    # All are reliable at first, and one is at the end.
    assert (values[1] > 0) == (done > 0) and values[0] > 0
    compare(loss, pseudo_labels(done, 0.9, 0.05), student, teacher, done=torch.tensor(done))


def test_threshold_falls_linearly_with_the_training():
    p = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.55, 0.45]])
    entropies = -(p * p.log()).sum(1) / math.log(2)
    loss, student = PseudoLabels(1.0, 1.0, (0.995, 0.4)), View(torch.zeros(3, 2))
    counts = []
    for done in (0.0, 0.1, 0.5, 0.9, 1.0):
        batch = Batch(torch.zeros(3, dtype=torch.int64), (8, 8), done=torch.tensor(done))
        reliable, unreliable = loss(student, View(p.log()), batch)
        assert (reliable + unreliable).item() == pytest.approx(math.log(2))
        counts.append(round(3 * reliable.item() / math.log(2)))
        assert counts[-1] == (entropies <= 0.995 - 0.595 * done).sum()
    assert counts == [3, 2, 1, 0, 0]


def test_pseudo_labels_ignore_the_labels_and_give_the_teacher_no_gradient():
    student, teacher = View(logits(0)), logits(3).requires_grad_()
    one = PseudoLabels()(student, View(teacher), Batch(LABELS, (8, 8)))
    other = PseudoLabels()(student, View(teacher), Batch(LABELS.flip(0), (8, 8)))
    assert one == other and not any(value.requires_grad for value in one)


def test_images_keep_the_verdict_of_the_clean_pass():
    student, clean, moved = logits(0), logits(3), logits(4)
    options = {"done": torch.tensor(0.4)}
    kept = values_and_gradient(PseudoLabels(), student, moved, judge=clean, **options)[0]
    assert torch.equal(kept, values_and_gradient(PseudoLabels(), student, clean, **options)[0])
    assert not torch.equal(kept, values_and_gradient(PseudoLabels(), student, moved, **options)[0])


def test_one_class_has_no_pseudo_labels():
    view = View(torch.zeros(2, 1))
    with pytest.raises(ModelError, match="two logits"):
        PseudoLabels()(view, view, Batch(torch.zeros(2, dtype=torch.int64), (8, 8)))


@pytest.mark.parametrize(("alpha", "temperature"), [(1.0, 20.0), (1.0, 1.0), (1e-3, 20.0)])
def test_element_mean_divides_by_the_classes_too(alpha, temperature):
    def formula(q, t):
        log_p, log_q = ((v / temperature).log_softmax(1) for v in (t, q))
        kl = (log_p.exp() * (log_p - log_q)).mean()
        return [alpha * temperature**2 * kl, q.new_zeros(())]

    loss = Distillation(alpha, temperature, label_weight=0.0, reduction="element")
    compare(loss, formula, logits(0), logits(1))


def test_feature_distance_is_a_sum_over_bodies_of_element_means():
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, 3, 4, 4), (BATCH, 5, 2, 2)]
    ours, theirs = (
        tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(2)
    )
    (value,) = FeatureDistance(weight=2.0)(
        View(logits(0), ours), View(logits(1), theirs), Batch(LABELS, (8, 8))
    )
    expected = 2 * sum(
        ((q.double() - t.double()) ** 2).sum().item() / q.numel()
        for q, t in zip(ours, theirs, strict=True)
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_feature_distance_reads_the_values_of_the_bodies():
    _, _, structure = tiny_pair(tiny_recipe())
    assert FeatureDistance().taps(structure) == (Tap("bn2", "activation"),)
    with pytest.raises(ModelError, match=r"finetune\.feature_distance\.weight = 0"):
        FeatureDistance().taps(Structure((), (), ()))


ALL_THREE = {
    "finetune__distillation__alpha": 0.0,
    "finetune__distillation__label_weight": 0.0,
    "finetune__features__weight": 0.0,
    "finetune__cam__weight": 0.0,
    "finetune__disagreement__temperature": 5.0,
    "finetune__pseudo_labels__entropy_thresholds": [0.9964, 0.9962],
    "finetune__feature_distance__weight": 10.0,
    "finetune__logit_distance__weight": 1.0,
}


@pytest.mark.parametrize("perturbation", [0.0, 1.0])
def test_a_split_batch_gives_the_same_values_and_gradients(perturbation):
    recipe = tiny_recipe(**ALL_THREE, finetune__perturbation__weight=perturbation)
    found = []
    for size in (6, 4):
        teacher, student, structure = tiny_pair(recipe)
        step = Step(teacher, student, structure, recipe.finetune)
        step.done.fill_(0.5)
        assert step.per_image
        terms = backward_in_parts(step, tiny_images(6), tiny_labels(6), size)
        assert all(terms[name] > 0 for name in ("reliable_ce", "unreliable_ce"))
        found.append((terms, [p.grad for p in step.parameters]))
    (whole, gradients), (parts, others) = found
    assert len(whole) == (9 if perturbation else 5)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_head_similarity_is_the_structure_of_the_patches_in_each_channel():
    generator = torch.Generator().manual_seed(0)
    # Ten tokens, of which the first is no patch; and four of a window.
    shapes = [(BATCH, 2, 10, 3), (2 * BATCH, 3, 4, 5)]
    ours, theirs = (
        tuple(torch.randn(shape, generator=generator) for shape in shapes) for _ in range(2)
    )
    (value,) = HeadSimilarity(weight=2.0)(
        View(logits(0), ours), View(logits(1), theirs), Batch(LABELS, (8, 8))
    )
    layers = []
    for q, t, first in ((ours[0], theirs[0], 1), (ours[1], theirs[1], 0)):
        q, t = q.double().numpy()[:, :, first:], t.double().numpy()[:, :, first:]
        c = ((q - q.mean(2, keepdims=True)) * (t - t.mean(2, keepdims=True))).mean(2)
        layers.append(1 - ((2 * c + 9e-4) / (q.var(2) + t.var(2) + 9e-4)).mean())
    assert value.item() == pytest.approx(2 * sum(layers) / 2, rel=1e-5)
    same = HeadSimilarity()(View(logits(0), ours), View(logits(1), ours), Batch(LABELS, (8, 8)))
    assert same[0].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("emphasized", "counts"), [(0.1, (1, 1)), (0.5, (4, 2))])
def test_head_similarity_can_count_some_patches_more(emphasized, counts):
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, 2, 10, 3), (2 * BATCH, 3, 4, 5)]
    ours, theirs = (
        tuple(torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
        for _ in range(2)
    )
    loss = HeadSimilarity(weight=2.0, emphasis=3.0, emphasized=emphasized)
    (value,) = loss(View(logits(0), ours), View(logits(1), theirs), Batch(LABELS, (8, 8)))
    exact = tuple(x.detach().double().requires_grad_() for x in ours)
    layers = []
    for q, t, first, count in zip(exact, theirs, (1, 0), counts, strict=True):
        similarities = []
        for student, teacher in zip(q, t.detach().double(), strict=True):
            student, teacher = student[:, first:], teacher[:, first:]
            size = [float(teacher[:, n].abs().mean()) for n in range(teacher.shape[1])]
            largest = sorted(range(len(size)), key=size.__getitem__)[-count:]
            w = torch.tensor([3.0 if n in largest else 1.0 for n in range(len(size))]).double()
            w = w / w.sum()
            for a, b in zip(student.unbind(0), teacher.unbind(0), strict=True):
                a, b = a - w @ a, b - w @ b
                c, v = w @ (a * b), w @ (a * a) + w @ (b * b)
                similarities.append((2 * c + 9e-4) / (v + 9e-4))
        layers.append(1 - torch.stack(similarities).mean())
    expected = 2 * sum(layers) / 2
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    slopes = torch.autograd.grad(value, ours), torch.autograd.grad(expected, exact)
    for found, wanted in zip(*slopes, strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-7)


def test_head_similarity_without_emphasis_is_mimiqs_bit_for_bit():
    x, y = torch.randn(BATCH, 2, 10, 3), torch.randn(BATCH, 2, 10, 3)
    views = View(logits(0), (x,)), View(logits(1), (y,))
    found = [
        HeadSimilarity(emphasis=1.0, emphasized=part)(*views, Batch(LABELS, (8, 8)))[0]
        for part in (0.0, 0.1, 1.0)
    ]
    assert found[0] == found[1] == found[2]


def test_logit_distance_is_the_mean_absolute_difference():
    def formula(q, t):
        return [0.7 * sum((a - b).abs().sum() for a, b in zip(q, t, strict=True)) / q.numel()]

    compare(LogitDistance(weight=0.7), formula, logits(0), logits(1))
    half = logits(0).bfloat16(), logits(1).bfloat16()
    assert values_and_gradient(LogitDistance(), *half)[0].dtype == torch.float32


def test_head_similarity_needs_attention():
    with pytest.raises(ModelError, match=r"finetune\.head_similarity\.weight = 0"):
        HeadSimilarity().taps(Structure((), (), ()))
    attention = Attention("product", "softmax", "values")
    assert HeadSimilarity().taps(Structure((), (), (), (), (attention,))) == (Tap("values"),)
