"""The CIFAR architectures: shapes, traceability, depth, and no in-place surprises."""

import pytest
import torch
from torch import fx, nn

from synq_fast.errors import ModelError
from synq_fast.models import cifar_resnet, cifar_resnet20, cifar_resnet20_kd, digits_resnet20
from synq_fast.models.resnet_cifar import PaddingShortcut

BUILDERS = [
    (cifar_resnet20, (3, 32, 32), 10),
    (cifar_resnet20_kd, (3, 32, 32), 100),
    (digits_resnet20, (1, 16, 16), 10),
]


@pytest.mark.parametrize(("build", "shape", "classes"), BUILDERS)
def test_maps_images_to_logits(build, shape, classes):
    assert build().eval()(torch.randn(3, *shape)).shape == (3, classes)


@pytest.mark.parametrize(("build", "shape", "classes"), BUILDERS)
def test_traces_with_one_node_per_relu(build, shape, classes):
    module = build().eval()
    graph = fx.symbolic_trace(module)
    x = torch.randn(2, *shape)
    assert torch.equal(graph(x), module(x))
    relus = [n for n in graph.graph.nodes if n.target is torch.nn.functional.relu]
    assert len(relus) == (13 if build is cifar_resnet20_kd else 19)
    assert not any(n.kwargs.get("inplace") for n in relus)


def test_uses_plain_layers_only():
    kinds = {type(m) for m in cifar_resnet20().modules() if not list(m.children())}
    assert kinds == {nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Identity, PaddingShortcut}


def test_padding_shortcut_subsamples_and_pads_both_sides():
    x = torch.arange(2 * 16.0).view(1, 2, 4, 4)
    y = PaddingShortcut(2, 5)(x)
    assert y.shape == (1, 5, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert y[:, 0].abs().max() == 0
    assert y[:, 3:].abs().max() == 0


@pytest.mark.parametrize(("depth", "convolutions"), [(8, 7), (14, 13), (32, 31)])
def test_depth_counts_weighted_layers(depth, convolutions):
    modules = cifar_resnet(depth).modules()
    assert sum(isinstance(m, nn.Conv2d) for m in modules) == convolutions


@pytest.mark.parametrize("depth", [2, 0, -4, 18, 21])
def test_other_depths_are_refused(depth):
    with pytest.raises(ModelError, match=f"6n\\+2.*got {depth}"):
        cifar_resnet(depth)


def test_a_tapped_feature_map_keeps_its_value():
    module = cifar_resnet20().eval()
    taps = []
    module.layer1[0].bn2.register_forward_hook(
        lambda _m, _i, out: taps.append((out, out.detach().clone()))
    )
    module(torch.randn(1, 3, 32, 32))
    (live, copy), *_ = taps
    assert torch.equal(live, copy)
