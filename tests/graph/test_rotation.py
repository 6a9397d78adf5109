"""The residual stream in another basis."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

import synq_fast
from synq_fast.errors import ModelError
from synq_fast.graph.rotation import rotated, rotation
from synq_fast.graph.structure import find_structure
from synq_fast.graph.taps import Tapped
from synq_fast.graph.trace import trace
from synq_fast.models import Teacher
from tests.tiny import run
from tests.transformers import SHAPE, TinyViT, tiny_vit


@pytest.mark.parametrize("width", [1, 2, 8, 12, 96, 192, 768, 10, 100])
def test_rotations_are_orthogonal_and_mostly_of_one_magnitude(width):
    turn = rotation(width)
    torch.testing.assert_close(turn @ turn.T, torch.eye(width).double(), atol=1e-12, rtol=0)
    assert torch.equal(turn, rotation(width))
    if width not in (10, 100):
        assert turn.abs().max() == turn.abs().min() == pytest.approx(width**-0.5)


def filled(network: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def deit():
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "deit_tiny_distilled_patch16_224",
        img_size=16,
        patch_size=4,
        depth=2,
        embed_dim=24,
        num_heads=2,
        num_classes=5,
    )


NETWORKS = {
    "small": (TinyViT, SHAPE[1]),
    "torchvision": (
        lambda: torchvision.models.VisionTransformer(24, 8, 2, 2, 16, 32, num_classes=5),
        24,
    ),
    "timm": (deit, 16),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays_and_the_network_too(name):
    build, side = NETWORKS[name]
    network, x = filled(build()), torch.randn(3, 3, side, side)
    before = copy.deepcopy(network.state_dict())
    graph = trace(network, x[:2])
    turned = rotated(graph)
    with torch.no_grad():
        expected = network(x)
        assert torch.allclose(turned(x), expected, atol=1e-4 * float(expected.abs().max()))
        assert torch.allclose(graph(x), expected, atol=1e-5)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    names = [getattr(node.target, "__name__", "") for node in turned.graph.nodes]
    assert "layer_norm" not in names
    assert not any(isinstance(m, nn.LayerNorm) for m in turned.modules())
    norm = next(node for node in turned.graph.nodes if node.target is functional.rms_norm)
    with torch.no_grad():
        (stream,) = Tapped(turned, [norm.all_input_nodes[0].name])(x).features
    back = stream.double() @ rotation(stream.shape[-1]).T
    assert back.mean(-1).abs().max() < 1e-5 * back.abs().max()
    structure = find_structure(turned, x[:2])
    assert structure.maps and len(structure.attentions) == 2


class Scaled(TinyViT):
    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) * 2
        return self.head(self.norm(self.layers(x))[:, 0])


class Twice(TinyViT):
    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.layers(self.layers(x)))[:, 0])


class ReadOtherwise(TinyViT):
    def forward(self, x):
        x = self.layers(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x)[:, 0]) + x.mean()


REFUSED = {
    "mul is part of the residual stream": Scaled,
    "is called several times": Twice,
    "mean reads the residual stream": ReadOtherwise,
    "it has no LayerNorm": lambda: nn.Sequential(nn.Conv2d(3, 2, 12), nn.Flatten()),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_networks_are_refused_with_the_way_out(what):
    graph = trace(REFUSED[what]().eval(), torch.randn(2, *SHAPE))
    with pytest.raises(ModelError, match=f'{what}.*rotate = "never"'):
        rotated(graph)


FEW = {"blocks.images": 8, "blocks.steps": 3, "blocks.batch_size": 4}


@pytest.mark.parametrize("choice", ["always", "auto"])
def test_a_rotated_network_is_quantized_saved_and_loaded(tmp_path, choice):
    options = {"overrides": {**FEW, "quantization.rotate": choice}, "recipe": "synq-fast-vit"}
    result = run(tiny_vit(), output=tmp_path, **options)
    assert result.recipe.quantization.rotate == "always"
    images = torch.randn(4, *SHAPE)
    assert torch.equal(synq_fast.load(tmp_path, model=TinyViT())(images), result.model(images))


def test_auto_leaves_networks_of_another_form_as_they_are():
    module = Scaled().eval()
    shape, ones = SHAPE, (1.0,) * 3
    teacher = Teacher(module, "scaled", shape, (0.0,) * 3, ones, 3)
    overrides = {**FEW, "blocks.steps": 0, "quantization.rotate": "auto"}
    result = run(teacher, overrides=overrides, recipe="synq-fast-vit")
    assert result.recipe.quantization.rotate == "never"
    overrides["quantization.rotate"] = "always"
    with pytest.raises(ModelError, match="mul is part of the residual stream"):
        run(teacher, overrides=overrides, recipe="synq-fast-vit")
