import pytest
import torch
import torchvision
from torch import nn

from synq_fast.errors import ModelError
from synq_fast.models import cifar_resnet20, cifar_resnet20_kd
from synq_fast.quant import Tapped, find_structure, trace
from tests.tiny import tiny_images, tiny_net
from tests.transformers import tiny_vit


def points_of(module: nn.Module, *shape: int):
    graph = trace(module.eval(), torch.zeros(2, *shape))
    return graph, find_structure(graph, torch.zeros(2, *shape))


def target_of(graph, name: str) -> str:
    return next(node.target for node in graph.graph.nodes if node.name == name)


@pytest.mark.parametrize(
    ("build", "shape", "body", "count"),
    [
        (lambda: torchvision.models.resnet18(weights=None), (3, 64, 64), "bn2", 8),
        (lambda: torchvision.models.resnet50(weights=None), (3, 64, 64), "bn3", 16),
        (cifar_resnet20, (3, 32, 32), "bn2", 9),
        (cifar_resnet20_kd, (3, 32, 32), "bn2", 9),
    ],
    ids=["resnet18", "resnet50", "cifar_resnet20", "cifar_resnet20_kd"],
)
def test_residual_bodies_are_the_branches_and_not_the_shortcuts(build, shape, body, count):
    graph, points = points_of(build(), *shape)
    targets = [target_of(graph, name) for name in points.bodies]
    assert len(targets) == count
    assert all(target.startswith("layer") and target.endswith(f".{body}") for target in targets)


def test_bodies_of_mobilenet_v2():
    graph, points = points_of(torchvision.models.mobilenet_v2(weights=None), 3, 64, 64)
    targets = [target_of(graph, name) for name in points.bodies]
    # The ten blocks of stride 1 with equal widths; conv.3 is the BatchNorm of the projection.
    blocks = (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)
    assert targets == [f"features.{i}.conv.3" for i in blocks]


def test_without_residual_bodies_every_batch_norm_counts():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3),
                        nn.BatchNorm2d(4), nn.Flatten())  # fmt: skip
    graph, points = points_of(net, 2, 8, 8)
    assert [target_of(graph, n) for n in points.bodies] == ["1", "4"]
    assert points.norms == points.bodies


@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (lambda: torchvision.models.resnet18(weights=None), 20),
        (lambda: torchvision.models.mobilenet_v2(weights=None), 52),
        (cifar_resnet20, 19),
    ],
)
def test_batch_norms_are_counted_in_order(build, layers):
    graph, points = points_of(build(), 3, 64, 64)
    assert len(points.norms) == layers
    order = [node.name for node in graph.graph.nodes]
    assert sorted(points.norms, key=order.index) == list(points.norms)


def test_the_map_of_mobilenet_v2_is_seven_by_seven():
    graph, points = points_of(torchvision.models.mobilenet_v2(weights=None), 3, 224, 224)
    with torch.no_grad():
        view = Tapped(graph, cam=points.maps[-1])(torch.zeros(1, 3, 224, 224))
    assert view.cam_activation.shape == (1, 1280, 7, 7)


def test_classifier_convolution_is_not_spatial():
    class ConvolutionalHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(2, 4, 3)
            self.classifier = nn.Conv2d(4, 3, 1)

        def forward(self, x):
            return self.classifier(self.body(x).mean((2, 3), keepdim=True)).flatten(1)

    graph, points = points_of(ConvolutionalHead(), 2, 8, 8)
    assert target_of(graph, points.maps[-1]) == "body"


def test_resnet_reads_the_map_at_the_last_block():
    graph, points = points_of(torchvision.models.resnet18(weights=None), 3, 64, 64)
    assert target_of(graph, points.maps[-1]) == "layer4.1.conv2"


def test_model_without_spatial_convolution():
    _, points = points_of(nn.Sequential(nn.Flatten(), nn.Linear(8, 3)), 2, 2, 2)
    assert points.maps == ()
    assert points.bodies == ()


@pytest.mark.parametrize("images_need_gradient", [False, True])
def test_head_gradient_equals_the_gradient_of_a_full_graph(images_need_gradient):
    net = tiny_net()
    images = tiny_images(4)
    kept = {}
    hook = net.conv2.register_forward_hook(lambda m, args, out: kept.update(a=out))
    # As a leaf's output is changed in place by `+=`, the hook's tensor is compared before it.
    graph, points = points_of(tiny_net(), 2, 8, 8)
    with torch.enable_grad():
        logits = net(images.clone().requires_grad_())
        expected = torch.autograd.grad(logits.max(1).values.sum(), kept["a"])[0]
    hook.remove()

    graph.requires_grad_(False)
    own = images.clone().requires_grad_(images_need_gradient)
    view = Tapped(graph, points.bodies, points.maps[-1])(own)
    gradient = torch.autograd.grad(
        view.logits.max(1).values.sum(), view.cam_activation, retain_graph=True
    )[0]
    assert torch.equal(gradient, expected)
    assert torch.equal(view.logits, logits)
    if images_need_gradient:
        assert torch.autograd.grad(view.logits.sum(), own)[0].abs().sum() > 0
    else:
        # Only the head is recorded: nothing before the tap has a graph.
        assert view.cam_activation.grad_fn is None


def test_tap_does_not_change_the_model():
    graph, points = points_of(tiny_net(), 2, 8, 8)
    code = graph.code
    tapped = Tapped(graph, points.bodies, points.maps[-1])
    images = tiny_images(2)
    with torch.no_grad():
        assert torch.equal(tapped(images).logits, graph(images))
    assert graph.code == code
    assert tapped.module.conv1.weight is graph.conv1.weight


def test_feature_and_map_of_one_node():
    graph, points = points_of(tiny_net(), 2, 8, 8)
    name = points.maps[-1]
    view = Tapped(graph, [name], name)(tiny_images(2))
    assert torch.equal(view.features[0], view.cam_activation)


def test_unknown_node_is_named():
    graph, _ = points_of(tiny_net(), 2, 8, 8)
    with pytest.raises(ModelError, match="no nodes named nothing"):
        Tapped(graph, ["bn1", "nothing"])


def test_maps_of_a_transformer_are_its_patches():
    """The gradient at the map is that at the patches, and the logits stay."""
    teacher = tiny_vit()
    graph = trace(teacher.module, teacher.example())
    structure = find_structure(graph, teacher.example())
    x = torch.randn(2, *teacher.input_shape)
    view = Tapped(graph, cam=structure.maps[0])(x)
    assert view.cam_activation.shape == (2, 8, 3, 3)
    assert torch.allclose(view.logits, teacher.module(x), atol=1e-6)
    (gradient,) = torch.autograd.grad(view.logits[:, 1].sum(), view.cam_activation)
    seen = {}

    def keep(module, arguments, output):
        seen["tokens"] = output
        output.retain_grad()

    handle = teacher.module.layers[-1].norm1.register_forward_hook(keep)
    teacher.module(x)[:, 1].sum().backward()
    handle.remove()
    tokens, slopes = seen["tokens"], seen["tokens"].grad
    assert torch.allclose(view.cam_activation.flatten(2), tokens[:, 1:].transpose(1, 2), atol=1e-6)
    assert torch.allclose(gradient.flatten(2), slopes[:, 1:].transpose(1, 2), atol=1e-6)
    assert gradient.abs().sum() > 0
