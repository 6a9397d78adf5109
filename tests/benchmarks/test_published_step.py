"""The rebuilt published step: its costs are switches, and no switch of cost moves a gradient."""

from __future__ import annotations

import copy
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.baselines.published_cam import PublishedGradCam
from benchmarks.baselines.published_losses import (
    distillation,
    low_pass_full,
    low_pass_half,
    low_pass_mask,
)
from benchmarks.baselines.published_quantizer import activation_quantizers, set_ranges
from benchmarks.baselines.published_step import (
    LossConstants,
    PublishedStep,
    PublishedStepConfig,
    build_published_student,
)
from benchmarks.baselines.published_taps import last_convolution, residual_bodies

CLASSES, SIDE, BATCH = 5, 12, 6
COSTS = [
    field.name
    for field in fields(PublishedStepConfig)
    if getattr(PublishedStepConfig(), field.name)
    and not getattr(PublishedStepConfig.lean(), field.name)
]


class SmallResidualNet(nn.Module):
    """Two residual blocks, one ReLU module shared by two calls, an in-place addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem_norm(self.stem(x)))
        x = functional.relu(self.norm1(self.conv1(x)) + x)
        body = self.norm2(self.conv2(x))
        body += x
        x = self.relu(body)
        return self.linear(x.mean(dim=(2, 3)))


@pytest.fixture
def teacher() -> nn.Module:
    torch.manual_seed(0)
    model = SmallResidualNet().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, CLASSES, (BATCH,), generator=generator)


def build(teacher: nn.Module, images: Tensor, config: PublishedStepConfig) -> PublishedStep:
    step = PublishedStep(teacher, build_published_student(teacher, 4, 4), config)
    step.observe_ranges(images)
    return step


def gradients(
    teacher: nn.Module, batch: tuple[Tensor, Tensor], config: PublishedStepConfig
) -> Tensor:
    step = build(teacher, batch[0], config)
    torch.manual_seed(0)
    step.step(*batch, update=False)
    found = step.gradients()
    assert found.keys() == dict(teacher.named_parameters()).keys()
    return torch.cat([gradient.flatten() for gradient in found.values()])


# Low thresholds for "easy" would mask every sample of a random teacher; 0.85 keeps some.
LOSSES = LossConstants(cutoff=4.0, difficulty_threshold=0.85)
FIXED = PublishedStepConfig(augment=False, losses=LOSSES)


def distance(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("switch", COSTS)
def test_a_cost_alone_leaves_the_gradients(teacher, batch, switch):
    on = replace(FIXED, augment=switch == "augment_one_by_one")
    off = replace(on, **{switch: False})
    assert distance(gradients(teacher, batch, off), gradients(teacher, batch, on)) < 1e-7


def test_all_costs_together_leave_the_gradients(teacher, batch):
    lean = PublishedStepConfig.lean(augment=False, losses=LOSSES)
    assert distance(gradients(teacher, batch, lean), gradients(teacher, batch, FIXED)) < 1e-7


@pytest.mark.parametrize(
    "change",
    [
        {"augment": True},
        {"direction_through_teacher": False},
        {"drop_perturbed_alignment": False},
        {"losses": replace(LOSSES, cutoff=None)},
        {"losses": replace(LOSSES, cam_weight=0.0)},
        {"losses": replace(LOSSES, ce_weight=0.0)},
        {"losses": replace(LOSSES, epsilon=0.1)},
    ],
    ids=lambda change: ",".join(change),
)
def test_a_choice_of_mathematics_moves_the_gradients(teacher, batch, change):
    changed = replace(FIXED, **change)
    assert distance(gradients(teacher, batch, changed), gradients(teacher, batch, FIXED)) > 1e-6


@pytest.mark.parametrize("through_teacher", [True, False])
def test_lean_and_published_agree_for_either_direction(teacher, batch, through_teacher):
    published = replace(FIXED, direction_through_teacher=through_teacher)
    lean = PublishedStepConfig.lean(
        augment=False, losses=LOSSES, direction_through_teacher=through_teacher
    )
    assert distance(gradients(teacher, batch, lean), gradients(teacher, batch, published)) < 1e-7


def test_clean_pass_alone_is_plain_distillation(teacher, batch):
    images, _ = batch
    losses = LossConstants(
        ce_weight=0.0, cam_weight=0.0, alignment_weight=0.0, perturbed_weight=0.0, cutoff=None
    )
    config = PublishedStepConfig(augment=False, losses=losses)
    found = gradients(teacher, batch, config)

    student = build(teacher, images, config).student
    distillation(student(images), teacher(images).detach(), 20.0, 20.0).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
    torch.testing.assert_close(found, expected)


def count_forwards(step: PublishedStep, batch: tuple[Tensor, Tensor]) -> tuple[int, int]:
    counts = {"student": 0, "teacher": 0}

    def counter(name):
        def hook(*_):
            counts[name] += 1

        return hook

    step.student.stem.register_forward_hook(counter("student"))
    step._teacher.model.stem.register_forward_hook(counter("teacher"))
    step.step(*batch, update=False)
    return counts["student"], counts["teacher"]


def test_forward_passes(teacher, batch):
    published = build(teacher, batch[0], FIXED)
    assert count_forwards(published, batch) == (4, 3)  # the fourth is the zero image's
    lean = build(teacher, batch[0], PublishedStepConfig.lean(augment=False))
    assert count_forwards(lean, batch) == (2, 2)


@pytest.mark.parametrize(
    ("leak", "standing", "expected"), [(True, 0, 3), (False, 0, 1), (False, 4, 5)]
)
def test_hooks_accumulate_only_when_leaked(teacher, batch, leak, standing, expected):
    step = build(teacher, batch[0], replace(FIXED, leak_hooks=leak, standing_hooks=standing))
    layer = step.student.get_submodule(last_convolution(teacher))
    for _ in range(3):
        step.step(*batch)
    assert len(layer._backward_hooks) == expected


def test_the_teacher_is_left_alone(teacher, batch):
    before = copy.deepcopy(teacher.state_dict())
    step = build(teacher, batch[0], FIXED)
    step.step(*batch)
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.conv2._forward_hooks
    assert all(parameter.grad is not None for parameter in step._teacher.model.parameters())


def test_a_step_updates_every_parameter_and_reports_its_terms(teacher, batch):
    step = build(teacher, batch[0], replace(FIXED, learning_rate=1e-3))
    before = copy.deepcopy(dict(step.student.named_parameters()))
    terms = step.step(*batch)
    assert set(terms) == {"kl", "ce", "alignment", "perturbed", "cam", "total"}
    assert {name: term.item() for name, term in terms.items()}.items() <= step.last_record.items()
    total = terms["kl"] + 5 * terms["ce"] + terms["alignment"]
    total = total + terms["perturbed"] + 200 * terms["cam"]
    torch.testing.assert_close(terms["total"], total)
    moved = dict(step.student.named_parameters())
    assert all(not torch.equal(moved[name], before[name]) for name in before)


def test_augmentation_depends_on_the_seed_alone(teacher, batch):
    config = PublishedStepConfig(losses=LOSSES)
    found = []
    for seed in (3, 3, 4):
        step = build(teacher, batch[0], config)
        torch.manual_seed(seed)
        found.append(step.step(*batch)["kl"].item())
    assert found[0] == found[1] != found[2]


def test_nan_stops_the_step(teacher, batch):
    step = build(teacher, batch[0], FIXED)
    with torch.no_grad():
        step.student.linear.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN"):
        step.step(*batch)


def test_student_has_a_quantizer_for_each_call_of_a_relu(teacher, batch):
    student = build_published_student(teacher, 4, 3)
    assert list(activation_quantizers(student)) == ["relu", "relu_1", "relu_2"]
    assert student.linear.bits == student.stem.bits == 4
    assert {quantizer.bits for quantizer in activation_quantizers(student).values()} == {3}
    assert residual_bodies(student) == ("norm1", "norm2")


def test_set_ranges(teacher, batch):
    step = build(teacher, batch[0], FIXED)
    step.set_ranges({"relu": (0, 1.5), "relu_1": (0, torch.tensor([2.0])), "relu_2": (0, 3)})
    read = [
        quantizer.range_max.item() for quantizer in activation_quantizers(step.student).values()
    ]
    assert read == [1.5, 2.0, 3.0]
    step.step(*batch)
    assert activation_quantizers(step.student)["relu"].range_max.item() == 1.5
    with pytest.raises(KeyError, match="relu_2"):
        set_ranges(step.student, {"relu": (0, 1)})


def test_cam_gradient_has_its_closed_form(teacher, batch):
    """Through norm, addition, ReLU, average and linear the channel weight is a count."""
    images, _ = batch
    cam = PublishedGradCam(teacher, teacher.conv2, FIXED)
    positive = {}
    teacher.relu.register_forward_hook(lambda m, i, output: positive.update(last=output > 0))
    cam(images)
    best = teacher(images).argmax(dim=1)
    norm = teacher.norm2
    slope = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    fraction = positive["last"].double().mean(dim=(2, 3)) / SIDE**2
    expected = teacher.linear.weight[best] * slope * fraction
    torch.testing.assert_close(cam.gradients.mean(dim=(2, 3)), expected)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 12), (5, 9)])
def test_both_low_pass_paths_agree(height, width):
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    mask = low_pass_mask(height, width, 3.0, x)
    torch.testing.assert_close(low_pass_half(x, mask), low_pass_full(x, mask))
