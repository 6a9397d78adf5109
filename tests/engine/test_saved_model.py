"""Saved models: what builds them again, and what is refused."""

import json

import pytest
import torch
import torchvision
from safetensors.torch import safe_open, save_file
from torch import nn

import synq_fast
from synq_fast.engine.saved_model import save_model
from synq_fast.engine.student import build_student
from synq_fast.errors import CheckpointError, ModelError, SynqFastWarning
from synq_fast.models import load_teacher
from synq_fast.quant import BitWidths, observing, trace
from synq_fast.runtime.memory_format import channels_last
from tests.tiny import SHAPE, tiny_images, tiny_net, tiny_recipe


def saved(teacher, path, dtype=torch.float32):
    """A quantized model with ranges, not trained; written to ``path``."""
    recipe, bits = tiny_recipe(quantization__range="minmax"), BitWidths(4, 4)
    channels_last(teacher.module)  # as in the engine
    student = build_student(
        trace(teacher.module, teacher.example()), bits, recipe.quantization
    ).eval()
    with torch.no_grad(), observing(student):
        student(torch.randn(4, *teacher.input_shape))
    student.requires_grad_(False).to(dtype)
    save_model(path, student, teacher, bits, recipe)
    return student


class Shifted(nn.Module):
    """A buffer outside the state dict, and a number in the code."""

    def __init__(self, shift=0.5, scale=2.0, width=6):
        super().__init__()
        self.net, self.scale = tiny_net(), scale
        self.head = nn.Linear(3, width)
        self.register_buffer("shift", torch.full((1, 2, 1, 1), shift), persistent=False)

    def forward(self, x):
        return self.head(self.net((x - self.shift) * self.scale))


def test_the_same_architecture_loads_and_another_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    student = saved(load_teacher(tiny_net(), input_shape=SHAPE), path)
    images = tiny_images(4)
    assert torch.equal(synq_fast.load(path, tiny_net(seed=9))(images), student(images))
    for change, match in [
        (lambda net: setattr(net.conv1, "stride", (2, 2)), r"conv1 = .*stride is \[1, 1\] in the"),
        (lambda net: setattr(net.bn2, "eps", 0.1), "eps is 1e-05 in the file and 0.1 in the model"),
        (lambda net: setattr(net, "relu", nn.ReLU6()), "class is ReLU in the file and ReLU6"),
    ]:
        net = tiny_net()
        change(net)
        with pytest.raises(CheckpointError, match=f"another structure of TinyNet: .*{match}"):
            synq_fast.load(path, net)
    with pytest.raises(CheckpointError, match="does not fit the given model"):
        synq_fast.load(path, Shifted())


def test_a_number_in_the_code_is_compared_and_a_buffer_comes_from_the_file(tmp_path):
    path = tmp_path / "m.safetensors"
    student = saved(load_teacher(Shifted(), input_shape=SHAPE), path)
    images = tiny_images(4)
    assert torch.equal(synq_fast.load(path, Shifted(shift=0.9))(images), student(images))
    with pytest.raises(CheckpointError, match=r"another structure.*2\.0.*3\.0"):
        synq_fast.load(path, Shifted(scale=3.0))


def test_options_of_a_factory_build_it_again(tmp_path):
    path = tmp_path / "m.safetensors"
    options = {"scale": 3.0, "width": 4}
    teacher = load_teacher(f"{__name__}:Shifted", input_shape=SHAPE, options=options)
    student = saved(teacher, path)
    images = tiny_images(4)
    assert torch.equal(synq_fast.load(path)(images), student(images))


def of_function(function=None):
    return Shifted()


def test_options_that_no_file_can_hold(tmp_path):
    path = tmp_path / "m.safetensors"
    options = {"function": torch.relu}
    saved(load_teacher(f"{__name__}:of_function", input_shape=SHAPE, options=options), path)
    with pytest.raises(CheckpointError, match="with function, which a file cannot hold; pass"):
        synq_fast.load(path)
    assert synq_fast.load(path, Shifted()) is not None


class Inception(nn.Module):
    """Takes the options of torchvision's GoogLeNet, at a fraction of its time."""

    def __init__(self, transform_input=False, aux_logits=True, init_weights=True, num_classes=3):
        super().__init__()
        self.transform_input, self.aux_logits = transform_input, aux_logits
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, num_classes)

    def forward(self, x):
        x = 0.3 * x - 0.1 if self.transform_input else x
        return self.fc(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("transform", [True, False])
def test_transform_input_of_a_torchvision_model_is_kept(tmp_path, monkeypatch, transform):
    def get_model(name, weights, **options):
        return Inception(**options)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    path, shape = tmp_path / "m.safetensors", (3, 12, 12)
    options = {} if transform else {"transform_input": False}
    teacher = load_teacher("googlenet", weights="random", input_shape=shape, options=options)
    assert teacher.module.transform_input is transform and not teacher.module.aux_logits
    student = saved(teacher, path)
    images = torch.randn(2, *shape)
    assert torch.equal(synq_fast.load(path)(images), student(images))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_of_another_type_comes_back_in_it(tmp_path, dtype):
    path = tmp_path / "m.safetensors"
    student = saved(load_teacher(tiny_net(), input_shape=SHAPE), path, dtype)
    loaded, images = synq_fast.load(path, tiny_net()), tiny_images(4).to(dtype)
    assert loaded(images).dtype == dtype
    assert torch.equal(loaded(images), student(images))


def test_a_file_without_a_structure_loads_with_a_warning(tmp_path):
    path = tmp_path / "m.safetensors"
    student = saved(load_teacher(tiny_net(), input_shape=SHAPE), path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        description = json.loads(file.metadata()["synq_fast"])
    del description["structure"], description["options"]
    save_file(tensors, path, {"synq_fast": json.dumps(description)})
    with pytest.warns(SynqFastWarning, match="before synq-fast recorded the structure"):
        loaded = synq_fast.load(path, tiny_net())
    assert torch.equal(loaded(tiny_images(4)), student(tiny_images(4)))


def test_only_the_graph_itself_is_saved(tmp_path):
    teacher = load_teacher(tiny_net(), input_shape=SHAPE)
    with pytest.raises(ModelError, match="only the quantized model itself can be saved"):
        save_model(tmp_path / "m", nn.Sequential(), teacher, BitWidths(4, 4), tiny_recipe())
