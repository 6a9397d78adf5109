import dataclasses

import pytest
import torch
from torch.nn import functional

from synq_fast import ops, reference
from synq_fast.errors import ModelError
from synq_fast.finetune.losses import LOSSES, Batch, Cam, Distillation, Features, View
from synq_fast.finetune.step import Step
from synq_fast.graph.taps import Tap, Tapped
from tests.tiny import CLASSES, tiny_images, tiny_labels, tiny_pair, tiny_recipe

ALL = ["kl", "ce", "features", "cam", "perturbed_kl", "perturbed_ce", "perturbed_features"]


class Passes:
    """Runs a step and notes the images of every forward pass of both networks."""

    def __init__(self, **overrides):
        recipe = tiny_recipe(**overrides)
        self.teacher, self.student, points = tiny_pair(recipe)
        self.step = Step(self.teacher, self.student, points, recipe.finetune)
        self.points = points
        self.seen = {"student": [], "teacher": []}
        for name in self.seen:
            self._count(name)

    def _count(self, name):
        original = getattr(self.step, name)

        def counted(images):
            self.seen[name].append(images.detach().clone())
            return original(images)

        setattr(self.step, name, counted)

    def run(self, seed: int = 5):
        images, labels = tiny_images(6, seed), tiny_labels(6, seed)
        return self.step(images, labels)

    @property
    def counts(self) -> dict[str, int]:
        return {name: len(images) for name, images in self.seen.items()}


def test_taps_and_names():
    recipe = tiny_recipe().finetune
    _, _, structure = tiny_pair(tiny_recipe())
    assert [type(loss) for loss in recipe.losses] == [Distillation, Features, Cam]
    table = {loss.names: (loss.taps(structure), loss.perturbed) for loss in recipe.losses}
    assert table == {
        ("kl", "ce"): ((), True),
        ("features",): ((Tap("bn2", "energy"),), True),
        ("cam",): ((Tap("conv2", "map"),), False),
    }
    assert not Features(in_perturbed_pass=False).perturbed
    assert all(kind.per_image for kind in LOSSES.values())
    names = [name for kind in LOSSES.values() for name in kind.names]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("off", "names", "forwards"),
    [
        ({}, ALL, 2),
        ({"finetune__perturbation__weight": 0}, ALL[:4], 1),
        ({"finetune__cam__weight": 0}, [n for n in ALL if n != "cam"], 2),
        ({"finetune__features__weight": 0}, [n for n in ALL if "features" not in n], 2),
        ({"finetune__features__in_perturbed_pass": False}, ALL[:6], 2),
        (
            {
                "finetune__perturbation__weight": 0,
                "finetune__features__weight": 0,
                "finetune__cam__weight": 0,
            },
            ["kl", "ce"],
            1,
        ),
    ],
    ids=["all", "no perturbation", "no cam", "no features", "cifar features", "distillation only"],
)
def test_switches_remove_terms_and_passes(off, names, forwards):
    passes = Passes(**off)
    assert passes.step.term_names == names
    losses = passes.run()
    assert set(losses) == set(names)
    assert passes.counts == {"student": forwards, "teacher": forwards}
    assert all(loss.isfinite() and not loss.requires_grad for loss in losses.values())


def test_taps_are_only_there_where_a_term_reads_them():
    passes = Passes(finetune__features__weight=0, finetune__cam__weight=0)
    view = passes.step.student(tiny_images(2))
    assert view.features == () and view.cam_activation is None


def test_weights_are_quantized_once_a_step(monkeypatch):
    passes, calls = Passes(), []
    original = ops.fake_quantize_dynamic
    monkeypatch.setattr(
        ops, "fake_quantize_dynamic", lambda *a, **k: (calls.append(1), original(*a, **k))[1]
    )
    passes.run()
    assert len(calls) == 3  # conv1, conv2 and fc, for two forwards and the head's gradient


def _by_hand(passes: Passes, images, labels, through_teacher: bool = False):
    """Every term from its formula, the gradient from autograd over full graphs."""
    recipe = passes.step.recipe
    features, cam = passes.points.bodies, passes.points.maps[-1]
    student = Tapped(passes.student, features, cam)
    teacher = Tapped(passes.teacher, features, cam)
    x = images.clone().requires_grad_()
    s, t = student(x), teacher(x if through_teacher else images)
    d, body, cam_loss = (recipe.loss(kind) for kind in (Distillation, Features, Cam))
    factor = body.weight
    p = t.logits.detach().softmax(1).gather(1, labels[:, None]).squeeze(1)
    trusted = (1 - p < d.difficulty_threshold) | (not d.soft_labels_only_if_difficult)
    mask = trusted.float()

    def logit_losses(s, t):
        log_t, log_s = ((v / d.temperature).log_softmax(1) for v in (t.logits, s.logits))
        kl = functional.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
        ce = functional.cross_entropy(s.logits, labels, reduction="none")
        return d.alpha * d.temperature**2 * kl, d.label_weight * (mask * ce).sum() / len(labels)

    def energy(f):
        a = f.square().mean((2, 3))
        return a / a.norm(dim=1, keepdim=True)

    def feature_loss(s, t):
        pairs = zip(s.features, t.features, strict=True)
        return factor * sum((energy(a) - energy(b)).square().mean() for a, b in pairs)

    def cam_map(view):
        score = view.logits.max(1).values.sum()
        slope = torch.autograd.grad(score, view.cam_activation, retain_graph=True)[0]
        return reference.grad_cam(view.cam_activation, slope, (8, 8))

    losses = dict(zip(["kl", "ce"], logit_losses(s, t), strict=True))
    if factor:
        losses["features"] = feature_loss(s, t)
    slope = torch.autograd.grad(sum(losses.values()), x, retain_graph=True)[0]
    moved = images + recipe.perturbation.epsilon * slope.sign()
    if cam_loss.weight:
        losses["cam"] = cam_loss.weight * (cam_map(s) - cam_map(t).detach()).square().mean()
    if w := recipe.perturbation.weight:
        s2, t2 = student(moved), teacher(moved)
        kl, ce = logit_losses(s2, t2)
        losses |= {"perturbed_kl": w * kl, "perturbed_ce": w * ce}
        if factor and body.in_perturbed_pass:
            losses["perturbed_features"] = w * feature_loss(s2, t2)
    gradients = torch.autograd.grad(sum(losses.values()), list(passes.student.parameters()))
    return {k: v.detach() for k, v in losses.items()}, gradients, moved


# A move of 3 changes which labels the teacher finds easy; the clean pass decides all the same.
@pytest.mark.parametrize(("epsilon", "verdicts_change"), [(0.01, False), (3.0, True)])
@pytest.mark.parametrize("through_teacher", [False, True])
def test_terms_and_gradients_are_those_of_the_formulas(through_teacher, epsilon, verdicts_change):
    passes = Passes(
        finetune__perturbation__epsilon=epsilon,
        finetune__perturbation__weight=0.7,
        finetune__perturbation__through_teacher=through_teacher,
        finetune__distillation__difficulty_threshold=0.7,
        finetune__distillation__label_weight=0.5,
    )
    images, labels = tiny_images(6, 5), tiny_labels(6, 5)
    expected, gradients, moved = _by_hand(passes, images, labels, through_teacher)
    p, p_moved = (passes.teacher(x).softmax(1)[torch.arange(6), labels] for x in (images, moved))
    assert bool(((p > 0.3) != (p_moved > 0.3)).any()) == verdicts_change
    losses = passes.step(images, labels)
    assert torch.equal(passes.seen["student"][1], moved)
    assert torch.equal(passes.seen["teacher"][1], moved)
    _compare(passes, losses, expected, gradients)


def _compare(passes: Passes, losses, expected, gradients) -> None:
    assert set(losses) == set(expected)
    # One rounding of a log-probability, times alpha T^2 = 8000.
    slack = {"kl": 1e-3, "perturbed_kl": 1e-3}
    for name, value in losses.items():
        wanted = pytest.approx(expected[name].item(), rel=1e-4, abs=slack.get(name, 1e-6))
        assert value.item() == wanted, name
    # The step's gradient is that of the sum of the terms that it reports.
    for parameter, gradient in zip(passes.student.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("perturbation", [0.0, 0.7])
@pytest.mark.parametrize("features", ["none", "clean", "both"])
@pytest.mark.parametrize("cam", [0.0, 50.0])
@pytest.mark.parametrize("all_labels", [False, True])
def test_every_combination_of_terms(perturbation, features, cam, all_labels):
    passes = Passes(
        finetune__perturbation__weight=perturbation,
        finetune__features__weight=0.0 if features == "none" else 1000.0,
        finetune__features__in_perturbed_pass=features == "both",
        finetune__cam__weight=cam,
        finetune__distillation__soft_labels_only_if_difficult=not all_labels,
        finetune__distillation__difficulty_threshold=0.7,
        finetune__distillation__label_weight=0.5,
    )
    images, labels = tiny_images(6, 5), tiny_labels(6, 5)
    expected, gradients, _ = _by_hand(passes, images, labels)
    _compare(passes, passes.step(images, labels), expected, gradients)


def test_direction_through_the_teacher_is_another_one():
    moved = []
    for through in (False, True):
        passes = Passes(finetune__perturbation__through_teacher=through)
        passes.run()
        moved.append(passes.seen["student"][1])
    assert not torch.equal(*moved)


def test_perturbation_moves_every_pixel_by_epsilon():
    passes = Passes(finetune__perturbation__epsilon=0.25)
    passes.run()
    clean, moved = passes.seen["student"]
    assert torch.allclose((moved - clean).abs(), torch.full_like(clean, 0.25), atol=1e-6)


def test_step_leaves_images_and_teacher_alone():
    passes = Passes()
    images, labels = tiny_images(4), tiny_labels(4)
    before = images.clone()
    passes.step(images, labels)
    assert torch.equal(images, before) and not images.requires_grad and images.grad is None
    assert all(p.grad is None for p in passes.teacher.parameters())


def test_gradients_add_up():
    passes = Passes()
    passes.run()
    once = [p.grad.clone() for p in passes.student.parameters()]
    passes.run()
    for parameter, gradient in zip(passes.student.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def logits_for(p: float) -> torch.Tensor:
    """Two-class logits that give class 0 probability p."""
    return torch.tensor([[p, 1 - p]]).log()


def test_mask_of_the_clean_pass_is_used_again():
    term = Distillation(label_weight=1.0, difficulty_threshold=0.5)
    labels = torch.tensor([0, 0])
    student = View(torch.randn(2, 2))
    clean = torch.cat([logits_for(0.9), logits_for(0.2)])
    swapped = clean.flip(0)
    ce = functional.cross_entropy(student.logits, labels, reduction="none")
    own = term(student, View(clean), Batch(labels, (8, 8)))[1]
    assert own.item() == pytest.approx(ce[0].item() / 2, rel=1e-5)
    judged = term(student, View(swapped), Batch(labels, (8, 8), judge=clean))
    assert judged[1].item() == pytest.approx(ce[0].item() / 2, rel=1e-5)
    other = term(student, View(swapped), Batch(labels, (8, 8)))[1]
    assert other.item() == pytest.approx(ce[1].item() / 2, rel=1e-5)


@pytest.mark.parametrize("judged", [False, True])
def test_every_label_counts_where_the_switch_is_off(judged):
    off = Distillation(label_weight=1.0, soft_labels_only_if_difficult=False)
    teacher = torch.cat([logits_for(1e-30), logits_for(0.6)])
    student, labels = torch.randn(2, 2), torch.tensor([0, 0])
    batch = Batch(labels, (8, 8), teacher if judged else None)
    ce = off(View(student), View(teacher), batch)[1]
    assert ce.item() == pytest.approx(functional.cross_entropy(student, labels).item(), rel=1e-5)


def test_feature_term_compares_directions():
    student, teacher = torch.tensor([[5.0, 0.0, 4.0]]), torch.tensor([[0.0, 3.0, 0.0]])
    term = Features(weight=2.0)
    views = [View(torch.zeros(1, 2), (energies,)) for energies in (student, 7 * student, teacher)]
    batch = Batch(torch.zeros(1, dtype=torch.int64), (8, 8))
    assert term(views[0], views[1], batch)[0].item() == pytest.approx(0, abs=1e-12)
    # Two directions at a right angle are sqrt(2) apart: 2 over 3 channels.
    assert term(views[0], views[2], batch)[0].item() == pytest.approx(2 * 2 / 3)


def test_cam_gradient_needs_only_the_head():
    recipe = tiny_recipe()
    teacher, student, points = tiny_pair(recipe)
    cam = points.maps[-1]
    seen = [Tapped(net, (), cam)(tiny_images(4)) for net in (student, teacher)]
    views = [View(each.logits, (each.cam_activation,)) for each in seen]
    reached = []
    before_tap = student.conv1.weight
    before_tap.register_hook(lambda g: reached.append(g))
    loss = Cam(weight=1.0)(*views, Batch(tiny_labels(4), (8, 8)))[0]
    assert not reached
    loss.backward()
    assert len(reached) == 1
    assert views[1].values[0].grad is None


def test_cam_target_is_a_choice():
    recipe = tiny_recipe()
    teacher, student, points = tiny_pair(recipe)
    cam = points.maps[-1]
    seen = [Tapped(net, (), cam)(tiny_images(4)) for net in (student, teacher)]
    views = [View(each.logits, (each.cam_activation,)) for each in seen]
    agree = views[0].logits.argmax(1)
    assert torch.equal(agree, views[1].logits.argmax(1))

    def loss(target: str, labels: torch.Tensor) -> float:
        term = Cam(weight=1.0, target=target)
        return term(*views, Batch(labels, (8, 8)))[0].item()

    other = (agree + 1) % CLASSES
    assert loss("label", agree) == loss("argmax", agree) == loss("argmax", other)
    assert loss("label", other) != loss("label", agree)


def test_model_without_a_map_is_refused_by_the_setting():
    recipe = tiny_recipe()
    teacher, student, points = tiny_pair(recipe)
    points = dataclasses.replace(points, maps=())
    with pytest.raises(ModelError, match=r"finetune\.cam\.weight = 0"):
        Step(teacher, student, points, recipe.finetune)
    Step(teacher, student, points, tiny_recipe(finetune__cam__weight=0).finetune)


def test_weights_scale_their_terms():
    small, large = (
        Passes(finetune__features__weight=w, finetune__cam__weight=w).run() for w in (1.0, 10.0)
    )
    for name in ("features", "cam"):
        assert large[name].item() == pytest.approx(10 * small[name].item(), rel=1e-5)


def test_bf16_networks_train_with_float32_losses():
    passes = Passes(finetune__precision="bf16")
    losses = passes.run()
    assert all(v.isfinite() and v.dtype == torch.float32 for v in losses.values())
    assert all(p.grad.dtype == torch.float32 for p in passes.student.parameters())
    exact = Passes().run()
    assert losses["kl"].item() == pytest.approx(exact["kl"].item(), rel=0.3)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_step_decides_tf32_and_restores_the_setting(precision, monkeypatch):
    seen = []
    real = torch.Tensor.backward
    monkeypatch.setattr(
        torch.Tensor,
        "backward",
        lambda *a, **k: (
            seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)),
            real(*a, **k),
        ),
    )
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    Passes(finetune__precision=precision).run()
    assert seen == [(precision == "tf32",) * 2]
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
