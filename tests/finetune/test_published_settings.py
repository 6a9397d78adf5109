"""The fine-tuning losses of published methods, written as recipes: value and gradient of each."""

import pytest
import torch
from torch.nn import functional

from synq_fast.finetune.step import Step
from synq_fast.graph.taps import Tapped
from synq_fast.recipes import load_recipe
from tests.tiny import CLASSES, tiny_images, tiny_labels, tiny_pair

IMAGES, LABELS = tiny_images(6, 5), tiny_labels(6, 5)
DONE = 0.25


def kl(t, q, temperature):
    """Batch mean of KL(teacher || student), times the squared temperature."""
    log_p, log_q = ((v / temperature).log_softmax(1) for v in (t, q))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1).mean()


def cross_entropy(q):
    return functional.cross_entropy(q, LABELS)


def alignment(theirs, ours):
    def direction(f):
        return functional.normalize(f.square().mean((2, 3)))

    return 1000 * sum(
        (direction(a) - direction(b)).square().mean() for a, b in zip(ours, theirs, strict=True)
    )


def gdfq(t, q, theirs, ours):
    return cross_entropy(q) + kl(t, q, 20) / CLASSES


def adadfq(t, q, theirs, ours):
    d = ((t - q) / 20).softmax(1)
    return 400 * (d * d.log()).sum(1).mean()


def intraq(t, q, theirs, ours):
    return cross_entropy(q) + 20 * kl(t, q, 20)


def ait(t, q, theirs, ours):
    return 20 * kl(t, q, 20)


def hast(t, q, theirs, ours):
    return 20 * kl(t, q, 20) + alignment(theirs, ours)


def plf(t, q, theirs, ours):
    p = t.detach().softmax(1)
    entropy = -(p * p.log()).sum(1) / torch.tensor(float(CLASSES)).log()
    log_q, (top, classes) = q.log_softmax(1), p.topk(2, 1)
    high = -log_q.gather(1, classes)[:, 0]
    low = -(top / top.sum(1, keepdim=True) * log_q.gather(1, classes)).sum(1)
    reliable = entropy <= 0.5 - DONE * (0.5 - 0.2)
    labels = torch.where(reliable, high, 0.3 * low).mean()
    distance = sum((a - b).square().mean() for a, b in zip(ours, theirs, strict=True))
    return kl(t, q, 1) + labels + 100 * distance


ALONE = "[finetune.perturbation]\nweight = 0.0\n"
METHODS = {
    "GDFQ": (
        gdfq,
        f"""{ALONE}
[finetune.distillation]
alpha = 1.0
reduction = "element"
label_weight = 1.0
soft_labels_only_if_difficult = false
""",
    ),
    "AdaDFQ": (adadfq, f"{ALONE}[finetune.disagreement]\n"),
    "IntraQ": (
        intraq,
        f"""{ALONE}
[finetune.distillation]
label_weight = 1.0
soft_labels_only_if_difficult = false
""",
    ),
    "AIT": (ait, f"{ALONE}[finetune.distillation]\nlabel_weight = 0.0\n"),
    "HAST": (
        hast,
        """[finetune.perturbation]
through_teacher = true
[finetune.distillation]
label_weight = 0.0
[finetune.features]
""",
    ),
    "PLF": (
        plf,
        f"""{ALONE}
[finetune.distillation]
alpha = 1.0
temperature = 1.0
label_weight = 0.0
[finetune.pseudo_labels]
[finetune.feature_distance]
""",
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_says_the_published_loss(tmp_path, method):
    formula, text = METHODS[method]
    path = tmp_path / f"{method}.toml"
    path.write_text(text)
    recipe = load_recipe(path)
    teacher, student, structure = tiny_pair(recipe)
    # A student that is further away than rounding, and a teacher that is surer of some images.
    for network, factor in ((teacher, 40.0), (student, 15.0)):
        network.fc.weight.data.mul_(factor)
    networks = [Tapped(network, structure.bodies) for network in (teacher, student)]

    def total(images):
        theirs, ours = (network(images) for network in networks)
        return formula(theirs.logits, ours.logits, theirs.features, ours.features)

    x = IMAGES.clone().requires_grad_()
    expected = total(x)
    if recipe.finetune.perturbation.weight:
        (slope,) = torch.autograd.grad(expected, x, retain_graph=True)
        expected = expected + total(IMAGES + 0.01 * slope.sign())
    parameters = [p for p in student.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(expected, parameters)

    step = Step(teacher, student, structure, recipe.finetune)
    step.done.fill_(DONE)
    terms = step(IMAGES, LABELS)
    assert sum(terms.values()).item() == pytest.approx(expected.item(), rel=1e-4)
    if method == "PLF":
        assert terms["reliable_ce"] > 0 and terms["unreliable_ce"] > 0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item()
        )
