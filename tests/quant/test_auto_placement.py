import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

import synq_fast
from synq_fast.errors import ModelError
from synq_fast.models import Teacher, cifar_resnet20, load_teacher
from synq_fast.models.resnet_cifar import cifar_resnet20_kd, digits_resnet20
from synq_fast.quant import chosen_placement, trace
from synq_fast.recipes import list_recipes, load_recipe
from tests.tiny import CLASSES, SHAPE, run, tiny_images


def chosen(module: nn.Module, channels: int = SHAPE[0], size: int = SHAPE[1]) -> str:
    example = torch.zeros(2, channels, size, size)
    return chosen_placement("auto", trace(module.eval(), example))


# Their published numbers are those of after_relu.
@pytest.mark.parametrize(
    "build",
    [
        digits_resnet20,
        cifar_resnet20,
        cifar_resnet20_kd,
        torchvision.models.resnet18,
        torchvision.models.resnet50,
        torchvision.models.mobilenet_v2,
        torchvision.models.shufflenet_v2_x0_5,
        torchvision.models.densenet121,
    ],
)
def test_networks_of_relu_keep_the_published_placement(build):
    assert chosen(build(), 1 if build is digits_resnet20 else 3, 32) == "after_relu"


@pytest.mark.parametrize(
    "build",
    [
        torchvision.models.mobilenet_v3_small,
        torchvision.models.efficientnet_b0,
        torchvision.models.regnet_y_400mf,
    ],
)
def test_networks_of_other_activations_quantize_every_input(build):
    assert chosen(build(), 3, 64) == "all_inputs"


ACTIVATIONS = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "hardswish": functional.hardswish,
    "sigmoid": torch.sigmoid,
    "leaky_relu": functional.leaky_relu,
    "prelu": nn.PReLU(),
    "product": lambda x: x * torch.sigmoid(x),
    "softmax": lambda x: x.softmax(1),
    "nothing": lambda x: x,
}


class With(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, CLASSES)
        self.activation = activation

    def forward(self, x):
        x = self.activation(self.bn1(self.conv1(x)))
        return self.fc(self.activation(self.bn2(self.conv2(x))).mean((2, 3)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_network_without_relu_works_without_a_flag(name):
    torch.manual_seed(0)
    result = run(With(ACTIVATIONS[name]), overrides={"finetune.steps": 1})
    coverage = synq_fast.coverage(result.model)
    assert coverage.placement == "all_inputs"
    assert (coverage.weights, coverage.inputs, coverage.inputs_of) == (3, 3, 3)
    assert result.model(tiny_images(2)).isfinite().all()


@pytest.mark.parametrize(
    "relu",
    [nn.ReLU(), nn.ReLU6(), functional.relu, torch.relu],
    ids=["ReLU", "ReLU6", "functional.relu", "torch.relu"],
)
def test_every_form_of_relu_counts(relu):
    assert chosen(With(relu)) == "after_relu"


def test_one_other_activation_before_a_layer_is_enough():
    class Mixed(With):
        def forward(self, x):
            x = functional.silu(self.bn1(self.conv1(x)))
            return self.fc(functional.relu(self.bn2(self.conv2(x))).mean((2, 3)))

    assert chosen(Mixed(None)) == "all_inputs"


def test_a_batch_norm_between_relu_and_layer_needs_every_input():
    class NormLast(With):
        def forward(self, x):
            x = self.bn1(functional.relu(self.conv1(x)))
            return self.fc(self.bn2(functional.relu(self.conv2(x))).mean((2, 3)))

    assert chosen(NormLast(None)) == "all_inputs"


def test_an_activation_that_no_layer_reads_does_not_count():
    class SoftmaxedLogits(With):
        def forward(self, x):
            return super().forward(x).log_softmax(1)

    assert chosen(SoftmaxedLogits(nn.ReLU())) == "after_relu"


def test_explicit_placements_stay():
    graph = trace(With(nn.ReLU()).eval(), tiny_images(2))
    for placement in ("after_relu", "all_inputs"):
        assert chosen_placement(placement, graph) == placement
        result = run(With(nn.ReLU()), overrides={"quantization.placement": placement})
        assert result.recipe.quantization.placement == placement


def test_after_relu_where_there_is_none_is_refused_before_synthesis(monkeypatch):
    monkeypatch.setattr(synq_fast.engine.run.Run, "stages", None)
    with pytest.raises(ModelError, match='placement "after_relu" finds no place'):
        run(With(functional.silu), overrides={"quantization.placement": "after_relu"})


def test_shipped_recipes_follow_the_network():
    placements = {name: load_recipe(name).quantization.placement for name in list_recipes()}
    assert {placements.pop(name) for name in ("psaq", "psaq-v2", "synq-psaq")} == {"vit_outputs"}
    assert set(placements.values()) == {"auto"}


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0"])
def test_mobile_networks_go_all_the_way(name, tmp_path):
    torch.manual_seed(0)
    module = load_teacher(name, weights="random").module
    teacher = Teacher(module, name, (3, 32, 32), (0.0,) * 3, (1.0,) * 3, 1000)
    steps = {"synthesis.steps": 1, "quantization.calibration_batches": 1, "finetune.steps": 1}
    images = {"synthesis.images": 4, "synthesis.batch_size": 4, "finetune.batch_size": 2}
    result = synq_fast.quantize(
        teacher, "synq-cifar", overrides={**steps, **images}, progress=False
    )
    coverage = synq_fast.coverage(result.model)
    assert (coverage.weights, coverage.inputs) == (coverage.weights_of, coverage.inputs_of)
    result.save(tmp_path / "m.safetensors")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(synq_fast.load(tmp_path / "m.safetensors")(images), result.model(images))
