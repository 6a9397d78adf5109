import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from synq_fast.errors import ModelError
from synq_fast.quant import find_structure, trace
from synq_fast.synthesis.losses import (
    focal_class_loss,
    layer_switch,
    layered_weights,
    statistics_distance,
)
from synq_fast.synthesis.teacher import ImageTeacher
from tests.tiny import randomize_statistics, tiny_images, tiny_net


def bn_teacher(module: nn.Module, images: torch.Tensor) -> ImageTeacher:
    graph = trace(module.eval(), images)
    return ImageTeacher(graph, find_structure(graph, images))


def by_hooks(module: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Per layer MSE(mean) + MSE(biased variance) of the BatchNorm input, in float64."""
    terms = []

    def see(norm, args):
        x = args[0].detach().double()
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        error = (mean - norm.running_mean).square().mean() + (
            var - norm.running_var
        ).square().mean()
        terms.append(error)

    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(see) for norm in norms]
    with torch.no_grad():
        module.eval()(images)
    for hook in hooks:
        hook.remove()
    return terms


@pytest.mark.parametrize(
    ("build", "images", "layers"),
    [
        (tiny_net, tiny_images(4), 2),
        (lambda: torchvision.models.resnet18(weights=None), torch.randn(2, 3, 32, 32), 20),
    ],
    ids=["tiny", "resnet18"],
)
def test_loss_is_the_one_that_hooks_measure(build, images, layers):
    module = randomize_statistics(build())
    terms = by_hooks(module, images)
    assert len(terms) == layers
    teacher = bn_teacher(module, images)
    seen = teacher(images, torch.zeros(len(images)))
    assert torch.allclose(seen.logits, module(images), atol=1e-5)
    loss = statistics_distance(seen.norms, seen.running)
    assert loss.item() == pytest.approx(sum(terms).item() / layers, rel=1e-4)


def test_weights_and_targets_of_layers():
    net = tiny_net()
    images = tiny_images(4)
    first, second = by_hooks(net, images)
    teacher = bn_teacher(net, images)
    seen = teacher(images, torch.zeros(len(images)))
    inputs, running = seen.norms, seen.running
    loss = statistics_distance(inputs, running, (0.25, 3.0)).item()
    assert loss == pytest.approx((0.25 * first + 3 * second).item() / 2, rel=1e-5)
    # A layer of weight 0 is not even read.
    poisoned = (torch.full_like(inputs[0], torch.nan), inputs[1])
    loss = statistics_distance(poisoned, running, (0.0, 1.0)).item()
    assert loss == pytest.approx(second.item() / 2, rel=1e-5)
    own = [
        (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)) for x in (i.detach() for i in inputs)
    ]
    assert statistics_distance(inputs, own).item() < 1e-10


@pytest.mark.parametrize(
    "norm", [nn.Identity(), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False)]
)
def test_model_without_statistics(norm):
    net = nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.ReLU(), nn.Flatten())
    assert not bn_teacher(net, tiny_images(2)).has_statistics


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_is_the_formula(gamma):
    logits, labels = torch.randn(32, 5), torch.randint(5, (32,))
    p = logits.double().softmax(1)[torch.arange(32), labels]
    expected = ((1 - p) ** gamma * -p.log()).mean()
    assert focal_class_loss(logits, labels, gamma).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_gradient_is_that_of_the_formula(gamma):
    logits, labels = torch.randn(8, 5, requires_grad=True), torch.randint(5, (8,))
    focal_class_loss(logits, labels, gamma).backward()
    exact = logits.detach().double().requires_grad_()
    p = exact.softmax(1)[torch.arange(8), labels]
    ((1 - p) ** gamma * -p.log()).mean().backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-8)


@given(margin=st.floats(0, 1e4), gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_focal_gradient_is_finite_however_sure_the_teacher_is(margin, gamma):
    logits = torch.tensor([[margin, 0.0, 0.0], [-margin, 0.0, 0.0]], requires_grad=True)
    loss = focal_class_loss(logits, torch.zeros(2, dtype=torch.int64), gamma)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_certain_image_is_certain_in_float32():
    logits = torch.tensor([[40.0, 0.0]], requires_grad=True)
    assert logits.softmax(1)[0, 0] == 1
    focal_class_loss(logits, torch.tensor([0]), 0.5).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("layers", "switch"), [(20, 9), (21, 9), (53, 25), (52, 25), (2, 0), (1, 0)]
)
def test_depth_switch(layers, switch):
    assert layer_switch(layers) == switch
    weights = layered_weights(layers, 0.2, 1.1)
    assert weights == (0.2,) * switch + (1.1,) * (layers - switch)


def test_one_logit_is_refused():
    with pytest.raises(ModelError, match=r"1 logit per image.*the two logits \[0, z\]"):
        focal_class_loss(torch.randn(3, 1), torch.zeros(3, dtype=torch.int64), 1.0)
