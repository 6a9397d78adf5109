"""Teachers by name, import string and module."""

import sys
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import nn

from synq_fast.data import load_dataset
from synq_fast.engine.evaluation import evaluate
from synq_fast.errors import CheckpointError, MissingExtraError, ModelError
from synq_fast.models import Teacher, cifar_resnet, cifar_resnet20, list_teachers, load_teacher

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Small(nn.Module):
    def __init__(self, classes=7):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, classes)

    def forward(self, x):
        return self.linear(self.bn(self.conv(x)).relu().mean((2, 3)))


def small_factory():
    return Small()


def not_a_module():
    return 3


def needs_arguments(width):
    return Small(width)


INSTANCE = Small(5)
HERE = __name__


def test_digits_teacher_is_embedded_and_accurate():
    teacher = load_teacher("digits-resnet20")
    assert teacher.input_shape == (1, 16, 16)
    assert teacher.num_classes == 10
    result = evaluate(teacher, load_dataset("digits", teacher))
    assert result.count == 360
    assert result.top1 >= 98.5


def test_teacher_is_frozen_and_in_eval_mode():
    module = load_teacher("digits-resnet20").module
    assert not any(m.training for m in module.modules())
    assert not any(p.requires_grad for p in module.parameters())


def test_random_weights_are_untrained():
    teacher = load_teacher("digits-resnet20", weights="random")
    assert evaluate(teacher, "digits").top1 < 50


@pytest.mark.parametrize("name", ["cifar10-resnet20", "cifar100-resnet20kd"])
def test_architectures_without_weights_say_what_to_pass(name):
    assert name in list_teachers()
    with pytest.raises(ModelError, match="--weights PATH"):
        load_teacher(name)


def test_cifar_names_and_normalisation(tmp_path):
    torch.save(cifar_resnet20().state_dict(), tmp_path / "w.pth")
    ten = load_teacher("cifar10-resnet20", weights=tmp_path / "w.pth")
    assert (ten.mean, ten.std) == IMAGENET
    assert (ten.input_shape, ten.num_classes) == ((3, 32, 32), 10)
    hundred = load_teacher("cifar100-resnet20kd", weights="random")
    assert hundred.mean == (0.507, 0.487, 0.441)
    assert hundred.std == (0.267, 0.256, 0.276)
    assert hundred.num_classes == 100


def test_checkpoint_of_another_model(tmp_path):
    torch.save(cifar_resnet(8).state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="missing from the file"):
        load_teacher("cifar10-resnet20", weights=tmp_path / "w.pth")


def test_normalize_and_back():
    teacher = load_teacher("cifar100-resnet20kd", weights="random")
    images = torch.rand(2, 3, 32, 32)
    inputs = teacher.normalize(images)
    assert inputs[0, 1, 5, 6].item() == pytest.approx(
        (images[0, 1, 5, 6].item() - 0.487) / 0.256, abs=1e-5
    )
    torch.testing.assert_close(teacher.denormalize(inputs), images)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "resnet18"])
def test_torchvision_by_name(name):
    teacher = load_teacher(name, weights="random")
    assert (teacher.name, teacher.input_shape, teacher.num_classes) == (name, (3, 224, 224), 1000)
    assert (teacher.mean, teacher.std) == IMAGENET


def test_torchvision_number_of_classes_and_shape():
    teacher = load_teacher(
        "torchvision/squeezenet1_1", weights="random", num_classes=7, input_shape=(3, 64, 48)
    )
    assert (teacher.num_classes, teacher.input_shape) == (7, (3, 64, 48))


def test_failed_download_says_pass_weights(monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(ModelError, match=r"IMAGENET1K_V1.*no route to host.*--weights PATH"):
        load_teacher("resnet18")
    with pytest.raises(ModelError, match=r"IMAGENET1K_V2.*could not be downloaded"):
        load_teacher("resnet50", weights="IMAGENET1K_V2")


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ModelError, match=r"did you mean .*resnet18"):
        load_teacher("torchvision/resnet-18")
    with pytest.raises(ModelError, match="digits-resnet20"):
        load_teacher("digit-resnet20")


def test_a_missing_timm_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"timm/resnet18 needs timm: pip install .*timm"):
        load_teacher("timm/resnet18")


def test_timm_model_brings_its_normalisation(monkeypatch):
    def create_model(name, pretrained, num_classes=7):
        if name != "small" or pretrained:
            raise RuntimeError(f"unknown model or no network: {name}")
        module = Small(num_classes)
        module.pretrained_cfg = {"input_size": (3, 20, 24), "mean": (0.5,) * 3, "std": (0.25,) * 3}
        return module

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    teacher = load_teacher("timm/small", weights="random", num_classes=9)
    assert (teacher.input_shape, teacher.num_classes) == ((3, 20, 24), 9)
    assert (teacher.mean, teacher.std) == ((0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ModelError, match="timm could not build other"):
        load_teacher("timm/other")


@pytest.mark.parametrize("target", ["small_factory", "Small", "INSTANCE"])
def test_import_string(target):
    teacher = load_teacher(f"{HERE}:{target}", input_shape=(3, 8, 8))
    assert teacher.num_classes == (5 if target == "INSTANCE" else 7)
    assert INSTANCE.training


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "cannot import"),
        (f"{HERE}:absent", "cannot import"),
        (f"{HERE}:", "cannot import"),
        (f"{HERE}:not_a_module", "returned int, expected an nn.Module"),
        (f"{HERE}:needs_arguments", "cannot be called without arguments"),
        (f"{HERE}:HERE", "expected a function or a module"),
    ],
)
def test_bad_import_strings(name, message):
    with pytest.raises(ModelError, match=message):
        load_teacher(name, input_shape=(3, 8, 8))


def test_user_module_is_copied_and_left_alone():
    module = Small().train()
    teacher = load_teacher(module, input_shape=[3, 8, 8], mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    assert teacher.module is not module
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert teacher == Teacher(
        teacher.module, "Small", (3, 8, 8), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), 7
    )


def test_user_module_without_normalisation_takes_the_0_to_1_scale():
    teacher = load_teacher(Small(), input_shape=(3, 8, 8))
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(teacher.normalize(images), images)


def test_user_module_with_weights(tmp_path):
    source = Small()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    teacher = load_teacher(Small(), weights=tmp_path / "w.pth", input_shape=(3, 8, 8))
    assert torch.equal(teacher.module.linear.weight, source.linear.weight)


def test_a_teacher_passes_through():
    teacher = load_teacher(Small(), input_shape=(3, 8, 8))
    assert load_teacher(teacher) is teacher
    assert load_teacher(teacher, device="cpu").module is teacher.module
    assert teacher.device == torch.device("cpu")


def test_unknown_input_shape_is_asked_for():
    with pytest.raises(ModelError, match="pass input_shape="):
        load_teacher(Small())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_shape": (8, 8)}, "three positive integers"),
        ({"input_shape": (3, 8, 0)}, "three positive integers"),
        ({"input_shape": (3, 8.0, 8)}, "three positive integers"),
        ({"input_shape": (1, 8, 8)}, "does not run on an input of shape"),
        ({"input_shape": (3, 8, 8), "mean": (0.5,)}, "one value per channel"),
        ({"input_shape": (3, 8, 8), "std": (1, 0, 1)}, "std must be positive"),
        ({"input_shape": (3, 8, 8), "mean": (0, float("nan"), 0)}, "must be finite"),
        ({"input_shape": (3, 8, 8), "num_classes": 10}, "has 7 classes, but num_classes=10"),
    ],
)
def test_bad_descriptions(options, message):
    with pytest.raises(ModelError, match=message):
        load_teacher(Small(), **options)


class Features(nn.Module):
    def forward(self, x):
        return x


class Pair(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), x


@pytest.mark.parametrize(("module", "got"), [(Features(), r"\(2, 3, 8, 8\)"), (Pair(), "tuple")])
def test_a_model_that_is_no_classifier(module, got):
    with pytest.raises(ModelError, match=f"not a classifier: for 2 images it returned {got}"):
        load_teacher(module, input_shape=(3, 8, 8))


def test_something_else_is_refused():
    with pytest.raises(ModelError, match="got int"):
        load_teacher(3)


@pytest.mark.parametrize("shape", [[3, 8, 8], np.array([3, 8, 8]), (np.int64(3), 8, np.int32(8))])
def test_shape_and_normalisation_of_any_library(shape):
    mean, std = np.array([0.5, 0.25, 0.75]), torch.tensor([0.5, 0.25, 0.5])
    teacher = load_teacher(Small(), input_shape=shape, mean=mean, std=std)
    direct = Teacher(teacher.module, "Small", shape, mean, std, 7)
    for made in (teacher, direct):
        assert made.input_shape == (3, 8, 8) and set(map(type, made.input_shape)) == {int}
        assert made.mean == (0.5, 0.25, 0.75) and made.std == (0.5, 0.25, 0.5)
        assert set(map(type, made.mean + made.std)) == {float}


@pytest.mark.parametrize("mean", [0.5, "0.5", (0.5,), (0.5, "x", 0.5), (0.5, None, 0.5)])
def test_malformed_normalisation(mean):
    with pytest.raises(ModelError, match="mean "):
        load_teacher(Small(), input_shape=(3, 8, 8), mean=mean)


def grey(mean, std):
    """A network for grey images that still carries the description of one for colours."""
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(5))
    module(torch.zeros(1, 1, 8, 8))
    module.pretrained_cfg = {"input_size": (3, 8, 8), "mean": mean, "std": std}
    return module


def test_described_normalisation_of_other_channels():
    teacher = load_teacher(grey((0.5,) * 3, (0.25,) * 3), input_shape=(1, 8, 8))
    assert (teacher.mean, teacher.std) == ((0.5,), (0.25,))
    with pytest.raises(ModelError, match=r"mean for 3 channels.*its input has 1.*mean=\.\.\."):
        load_teacher(grey(*IMAGENET), input_shape=(1, 8, 8))
    with pytest.raises(ModelError, match="std for 3 channels"):
        load_teacher(grey((0.5,) * 3, IMAGENET[1]), input_shape=(1, 8, 8))
    teacher = load_teacher(grey(*IMAGENET), input_shape=(1, 8, 8), mean=(0.4,), std=(0.2,))
    assert (teacher.mean, teacher.std) == ((0.4,), (0.2,))


def test_where_the_weights_came_from(tmp_path, monkeypatch):
    assert load_teacher("digits-resnet20").source is None
    assert load_teacher("digits-resnet20", weights="random").source is None
    module = load_teacher("digits-resnet20").module
    torch.save(module.state_dict(), tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    found = load_teacher("digits-resnet20", weights="w.pt")
    assert found.source == str(tmp_path / "w.pt")
    # It says where to look, not what the teacher is.
    assert load_teacher(found) == found
