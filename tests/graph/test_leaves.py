import pytest
import torch
from torch import nn
from torch.nn import functional

import synq_fast
from synq_fast.errors import CheckpointError, RecipeError
from synq_fast.graph.leaves import is_kept
from synq_fast.quant import leaf_names
from synq_fast.synthesis.synthesizer import Synthesizer
from tests.tiny import CLASSES, SHAPE, randomize_statistics, run, tiny_images, tiny_net


class Nested(nn.Module):
    """A list that is never called, a class used twice, a module under two names, a plain head."""

    def __init__(self):
        super().__init__()
        self.c1, self.bn1 = nn.Conv2d(SHAPE[0], 6, 3, padding=1), nn.BatchNorm2d(6)
        self.blocks = nn.ModuleList([Block(), nn.Sequential(Block())])
        self.again = self.blocks[0]
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = functional.relu(self.bn1(self.c1(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc(self.again(x).mean((2, 3)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x):
        return functional.relu(self.bn(self.conv(x)))


def nested() -> nn.Module:
    torch.manual_seed(0)
    return randomize_statistics(Nested()).eval()


def layers(model: nn.Module) -> dict[str, bool]:
    """Whether each convolution and linear layer is quantized."""
    kinds = (nn.Conv2d, nn.Linear)
    return {
        name: hasattr(m, "weight_bits") for name, m in model.named_modules() if isinstance(m, kinds)
    }


BLOCKS = {"blocks.0.conv", "blocks.1.0.conv"}


@pytest.mark.parametrize(
    ("leaves", "in_float"),
    [
        (["c1", "fc"], {"c1", "fc"}),
        (["Linear"], {"fc"}),
        (["Conv2d"], {"c1"} | BLOCKS),
        (["Block"], BLOCKS),
        # Never called itself, so what it holds is meant.
        (["blocks"], BLOCKS),
        (["ModuleList"], BLOCKS),
        # A second name of blocks.0.
        (["again"], {"blocks.0.conv"}),
        (["blocks.1"], {"blocks.1.0.conv"}),
        (["blocks.1.0.conv"], {"blocks.1.0.conv"}),
        ([], set()),
    ],
)
def test_named_layers_stay_in_float_after_quantizing_and_loading(tmp_path, leaves, in_float):
    result = run(nested(), overrides={"quantization.leaf_modules": leaves, "finetune.steps": 1})
    found = layers(result.model)
    assert {name for name, quantized in found.items() if not quantized} == in_float
    assert set(found) == {"c1", "fc"} | BLOCKS
    result.save(tmp_path / "m.safetensors")
    loaded = synq_fast.load(tmp_path / "m.safetensors", model=nested())
    assert layers(loaded) == found
    images = tiny_images(4)
    assert torch.equal(loaded(images), result.model(images))
    coverage = synq_fast.coverage(loaded)
    assert (coverage.weights, coverage.weights_of) == (4 - len(in_float), 4)
    assert {part.name for part in coverage.float_weights} == in_float
    assert all("quantization.leaf_modules" in part.reason for part in coverage.float_weights)


@pytest.mark.parametrize(
    ("name", "near"),
    [("blocks.0.cnov", "blocks.0.conv"), ("block", "Block"), ("FC", "fc"), ("c2", "c1")],
)
def test_unknown_names_are_refused_with_the_nearest_before_any_work(monkeypatch, name, near):
    def never(*args, **options):
        raise AssertionError("work has begun")

    monkeypatch.setattr(Synthesizer, "__init__", never)
    with pytest.raises(RecipeError, match=r"quantization\.leaf_modules") as caught:
        run(nested(), overrides={"quantization.leaf_modules": ["c1", name]})
    assert f'"{name}"' in str(caught.value) and near in str(caught.value)


def test_unknown_name_without_a_near_one_shows_the_parts():
    with pytest.raises(RecipeError, match=r"its parts: conv1, bn1, conv2, bn2, relu, fc"):
        leaf_names(tiny_net(), ["zzzzzz"])


def test_the_model_itself_cannot_be_a_leaf():
    with pytest.raises(RecipeError, match="the model itself"):
        leaf_names(tiny_net(), ["TinyNet"])


def test_a_network_of_leaves_has_nothing_to_quantize():
    with pytest.raises(synq_fast.SynqFastError, match=r"outside quantization\.leaf_modules"):
        run(overrides={"quantization.leaf_modules": ["Conv2d", "Linear"]})


def test_a_saved_model_with_leaves_refuses_an_architecture_without_them(tmp_path):
    result = run(nested(), overrides={"quantization.leaf_modules": ["c1"], "finetune.steps": 0})
    result.save(tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r'does not fit.*"c1"'):
        synq_fast.load(tmp_path / "m.safetensors", model=tiny_net())


@pytest.mark.parametrize(
    ("target", "kept"),
    [("a", True), ("a.b", True), ("ab", False), ("b.a", False), ("c.d", True), ("c", False)],
)
def test_a_leaf_holds_what_lies_inside_it(target, kept):
    assert is_kept(target, {"a", "c.d"}) == kept
