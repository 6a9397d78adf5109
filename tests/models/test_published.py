"""Options of architectures that follow the weights of torchvision and timm."""

import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import VGG16_Weights

from synq_fast.errors import ModelError, SynqFastWarning
from synq_fast.models import load_teacher
from synq_fast.models.published import published_options


def published(name, tmp_path, **options):
    """A model as torchvision builds it beside its own weights, and a file of such weights."""
    torch.manual_seed(3)
    kind = getattr(torchvision.models, name)
    module = kind(weights=None, init_weights=False, transform_input=True, **options).eval()
    torch.save(module.state_dict(), tmp_path / "w.pth")
    return module, tmp_path / "w.pth"


def test_published_weights_from_a_file_are_the_published_network(tmp_path):
    module, path = published("googlenet", tmp_path, aux_logits=False)
    with pytest.warns(SynqFastWarning, match=r"built with transform_input=True.*options=\{'trans"):
        teacher = load_teacher("googlenet", weights=path, input_shape=(3, 32, 32))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(teacher.module(images), module(images))
    assert teacher.options["transform_input"] is True
    assert published_options("torchvision", "inception_v3") == {"transform_input": True}


@pytest.mark.filterwarnings("error")
def test_a_network_trained_without_them_is_asked_for_by_option(tmp_path):
    module, path = published("googlenet", tmp_path, aux_logits=True)
    options = {"transform_input": False}
    teacher = load_teacher("googlenet", weights=path, input_shape=(3, 32, 32), options=options)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(teacher.module(images), module(images))
        module.transform_input = False
        assert torch.equal(teacher.module(images), module(images))


def test_a_size_that_the_architecture_is_built_for_follows_the_images():
    teacher = load_teacher("vit_b_32", weights="random", input_shape=(3, 64, 64), num_classes=4)
    assert teacher.options == {"image_size": 64, "num_classes": 4}
    assert teacher.module.encoder.pos_embedding.shape[1] == 5


def test_normalisation_follows_the_weights(monkeypatch):
    built = []

    def get_model(name, weights, **options):
        built.append(weights)
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1000))

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    large = load_teacher("efficientnet_v2_l", weights="random")
    assert (large.mean, large.std, large.input_shape) == ((0.5,) * 3, (0.5,) * 3, (3, 480, 480))
    weights = torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1
    assert load_teacher("vit_b_16", weights=weights).options == {"image_size": 384}
    assert load_teacher("vit_b_16").options == {"image_size": 224}
    assert built == [None, weights, torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1]


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("vgg16", {"weights": "IMAGENET1K_FEATURES"}, "features without a classifier"),
        ("resnet18", {"weights": VGG16_Weights.IMAGENET1K_FEATURES}, "no pretrained weights IMA"),
        ("digits-resnet20", {"weights": VGG16_Weights.DEFAULT}, "cannot take"),
        ("resnet18", {"weights": "random", "options": {"widht": 3}}, "cannot build.*'widht': 3"),
        ("digits-resnet20", {"options": {"depth": 3}}, "has no options, got depth"),
        (nn.Linear(2, 2), {"options": {"depth": 3}}, "need a model by name"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(name, options, match):
    with pytest.raises(ModelError, match=match):
        load_teacher(name, **options)


def small(classes=3, width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, classes),
    )  # fmt: skip


def test_options_reach_a_factory_and_are_kept():
    teacher = load_teacher(
        f"{__name__}:small", input_shape=(3, 8, 8), options={"classes": 5, "width": 2}
    )
    assert (teacher.num_classes, teacher.module[0].out_channels) == (5, 2)
    assert teacher.options == {"classes": 5, "width": 2}


def test_no_builder_of_torchvision_changes_anything_else_with_its_weights():
    sources = Path(torchvision.models.__file__).parent.glob("*.py")
    changed = {
        (path.stem, option)
        for path in sources
        for option in re.findall(r'_ovewrite_named_param\(kwargs, "(\w+)"', path.read_text())
        if option not in ("num_classes", "groups", "width_per_group")  # of the name or the labels
    }
    heads = {"transform_input", "aux_logits", "init_weights"}
    assert changed == {
        *(("googlenet", option) for option in heads),
        *(("inception", option) for option in heads),
        ("maxvit", "input_size"),
        ("vision_transformer", "image_size"),
    }


def test_no_builder_of_timm_changes_anything_else_with_its_weights():
    timm = pytest.importorskip("timm")
    sources = (Path(timm.__file__).parent / "models").glob("*.py")
    found = {
        (path.name, option)
        for path in sources
        for option in re.findall(
            r"if pretrained:\s*(?:#.*\s*)*kwargs\.setdefault\('(\w+)'", path.read_text()
        )
    }
    assert found == {("efficientnet.py", "bn_eps")}


def test_timm_weights_from_a_file_are_the_published_network(tmp_path):
    timm = pytest.importorskip("timm")
    module = timm.create_model("fbnetc_100", num_classes=3, bn_eps=1e-3).eval()
    torch.save(module.state_dict(), tmp_path / "w.pth")
    with pytest.warns(SynqFastWarning, match=r"built with bn_eps=0\.001.*'bn_eps': 1e-05"):
        teacher = load_teacher(
            "timm/fbnetc_100", weights=tmp_path / "w.pth", num_classes=3, input_shape=(3, 32, 32)
        )
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(teacher.module(images), module(images))


def test_timm_models_follow_the_images(tmp_path):
    pytest.importorskip("timm")
    teacher = load_teacher(
        "timm/vit_tiny_patch16_224", weights="random", input_shape=(3, 32, 32), num_classes=5
    )
    assert teacher.options == {"num_classes": 5, "img_size": (32, 32)}
    grey = load_teacher(
        "timm/resnet10t", weights="random", input_shape=(1, 32, 32), mean=(0.5,), std=(0.5,)
    )
    assert grey.options == {"in_chans": 1}
