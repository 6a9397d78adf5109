import json
import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

import synq_fast
from synq_fast.errors import ModelError
from synq_fast.graph.leaves import leaf_names
from synq_fast.quant import ActivationQuantizer, coverage_of, observing, quantized_copy, trace
from synq_fast.quant.bits import BitPolicy, BitWidths
from synq_fast.quant.coverage import Coverage
from tests.tiny import CLASSES, SHAPE, TinyNet, run, tiny_images, tiny_net

EXAMPLE, COLOUR = torch.zeros(2, *SHAPE), torch.zeros(2, 3, 64, 64)
TRACED = trace(tiny_net(), EXAMPLE)


def covered(
    module: nn.Module,
    placement: str = "auto",
    leaves: tuple[str, ...] = (),
    example: torch.Tensor = EXAMPLE,
) -> Coverage:
    names = leaf_names(module, leaves)
    student = quantized_copy(
        trace(module.eval(), example, names),
        BitPolicy(BitWidths(4, 4)),
        placement=placement,
        make_quantizer=ActivationQuantizer,
        leaves=names,
    )
    return coverage_of(student)


def in_float(parts) -> dict[str, str]:
    return {part.name: part.reason for part in parts}


class Around(nn.Module):
    """A stem, operations on its quantized activation, and a layer that reads what they give."""

    def __init__(self, operations, channels=4, **layers):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(2, 4, 3), nn.Conv2d(channels, 2, 1)
        self.operations = operations
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        x = functional.relu(self.stem(x))
        return self.fc(self.operations(self, x)).mean((2, 3))


KEEPING = {
    "max pool": lambda net, x: functional.max_pool2d(x, 2),
    "adaptive max pool": lambda net, x: functional.adaptive_max_pool2d(x, 2),
    "max pool module": lambda net, x: net.pool(x),
    "views": lambda net, x: x.flatten(2).view(x.size(0), 4, 6, 6).permute(0, 1, 3, 2).contiguous(),
    "slices": lambda net, x: x[:, :, 1:-1].chunk(2, dim=2)[1],
    "dropout": lambda net, x: functional.dropout(net.dropout(x), training=net.training),
    "relu": lambda net, x: functional.relu(x[:, :, ::2].relu()),
    "padding": lambda net, x: functional.pad(functional.pad(x, (1, 1)), (1,) * 4, mode="reflect"),
    "nearest": lambda net, x: functional.interpolate(x, scale_factor=2),
    "concatenation": lambda net, x: torch.cat([x[:, :2], torch.relu(net.stem2(x))[:, :2]], 1),
    "shuffle": lambda net, x: x.view(-1, 2, 2, 6, 6).transpose(1, 2).reshape(-1, 4, 6, 6),
}
LEAVING = {
    "average pool": (lambda net, x: functional.avg_pool2d(x, 2), "an average of quantized values"),
    "mean": (lambda net, x: x.mean((2, 3), keepdim=True), "an average of quantized values"),
    "padding by one": (lambda net, x: functional.pad(x, (1, 1), value=1.0), "follows pad"),
    "bilinear": (
        lambda net, x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
        "follows interpolate",
    ),
    "dropout that drops": (lambda net, x: functional.dropout(x), "follows dropout"),
    "sigmoid": (lambda net, x: torch.sigmoid(x), "follows sigmoid"),
    "product": (lambda net, x: x * torch.sigmoid(x), "follows mul"),
    "linear convolution": (lambda net, x: net.stem2(x), "follows Conv2d"),
    "batch norm": (lambda net, x: net.bn(net.stem2(x)), "follows BatchNorm2d"),
    "half joined": (lambda net, x: torch.cat([x[:, 2:], x[:, 2:] + 1], 1), "in part follows add"),
}


def around(operations) -> Around:
    return Around(
        operations,
        pool=nn.MaxPool2d(2),
        dropout=nn.Dropout(),
        stem2=nn.Conv2d(4, 4, 1),
        bn=nn.BatchNorm2d(4),
    )


def two_bits(module: nn.Module):
    graph = trace(module.eval(), EXAMPLE)
    return quantized_copy(
        graph,
        BitPolicy(BitWidths(4, 2)),
        placement="after_relu",
        make_quantizer=ActivationQuantizer,
    )


def seen_by_fc(module: nn.Module, student) -> int:
    """How many distinct values the last layer reads when activations have two bits."""
    seen = {}
    student.fc.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))
    with torch.no_grad(), observing(student):
        student(torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0)))
    return len(seen["x"].unique())


@pytest.mark.parametrize("name", KEEPING)
def test_operations_that_keep_the_grid(name):
    module = around(KEEPING[name])
    assert "fc" not in in_float(covered(module, "after_relu").float_inputs)
    # The claim itself: four values for each quantizer whose output is read.
    student = quantized_copy(
        trace(module.eval(), EXAMPLE),
        BitPolicy(BitWidths(4, 2)),
        placement="after_relu",
        make_quantizer=ActivationQuantizer,
    )
    assert seen_by_fc(module, student) <= (8 if name == "concatenation" else 4)


@pytest.mark.parametrize("name", LEAVING)
def test_operations_that_leave_the_grid(name):
    operations, reason = LEAVING[name]
    module = around(operations)
    assert in_float(covered(module, "after_relu").float_inputs)["fc"].startswith(reason)
    # A function of each value has as many values as before, only not those of the grid.
    if name not in ("dropout that drops", "sigmoid", "product"):
        student = quantized_copy(
            trace(module.eval(), EXAMPLE),
            BitPolicy(BitWidths(4, 2)),
            placement="after_relu",
            make_quantizer=ActivationQuantizer,
        )
        assert seen_by_fc(module, student) > 4


def test_published_placement_of_a_residual_network():
    coverage = covered(torchvision.models.resnet18(weights=None), example=COLOUR)
    assert coverage.placement == "after_relu"
    assert (coverage.weights, coverage.weights_of) == (21, 21)
    assert (coverage.inputs, coverage.inputs_of) == (19, 21)
    # Global average pooling lies between the last quantizer and the classifier.
    assert in_float(coverage.float_inputs) == {
        "conv1": "the image",
        "fc": "an average of quantized values, AdaptiveAvgPool2d",
    }


def test_all_inputs_leaves_none():
    coverage = covered(torchvision.models.resnet18(weights=None), "all_inputs", example=COLOUR)
    assert (coverage.inputs, coverage.inputs_of) == (21, 21)
    assert not coverage.float_inputs and not coverage.float_weights


def test_linear_bottlenecks_are_named():
    coverage = covered(torchvision.models.mobilenet_v2(weights=None), example=COLOUR)
    assert (coverage.placement, coverage.weights) == ("after_relu", 53)
    assert (coverage.inputs, coverage.inputs_of) == (34, 53)
    why = in_float(coverage.float_inputs)
    assert (
        why["features.2.conv.0.0"] == "follows BatchNorm2d: placement after_relu does not reach it"
    )
    assert why["features.4.conv.0.0"] == "follows add: placement after_relu does not reach it"


class Odd(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Zoo(nn.Module):
    """Every kind of layer that has weights and no quantizer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.odd = Odd(4, 4, 1)
        self.doubled = nn.Conv2d(4, 4, 1)
        parametrize.register_parametrization(self.doubled, "weight", Double())
        self.maker = nn.Linear(4, 16)
        self.rows = nn.Conv1d(4, 4, 1)
        self.lstm = nn.LSTM(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.pair = nn.Bilinear(4, 4, 4)
        self.free = nn.Parameter(torch.randn(4, 4))
        self.table = nn.Embedding(3, 4)
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x):
        x = functional.relu(self.up(functional.relu(self.conv(x))))
        x = functional.relu(self.odd(x))
        x = functional.relu(self.doubled(x))
        made = self.maker(x.amax((2, 3)))[0].view(4, 4, 1, 1)
        x = functional.relu(functional.conv2d(x, made))
        x = functional.relu(self.rows(x.flatten(2))).permute(2, 0, 1)
        x = self.lstm(x)[0]
        x = self.attention(x, x, x)[0].mean(0) + self.table.weight[0]
        x = self.pair(x, x + 1) @ self.free
        x = torch.einsum("bc,dc->bd", x, x) @ x
        return self.fc(self.norm(x))


def test_every_kind_of_layer_is_counted_and_explained():
    coverage = covered(Zoo(), "after_relu", leaves=("Odd", "ParametrizedConv2d"))
    why = in_float(coverage.float_weights)
    whole = "which stays whole"
    assert why == {
        "up": "ConvTranspose2d has no quantizer here",
        "odd": "kept by quantization.leaf_modules",
        "doubled": "kept by quantization.leaf_modules",
        "conv2d": "its weights are computed from the image",
        "rows": "Conv1d has no quantizer here",
        "lstm.weight_ih_l0": f"inside LSTM, {whole}",
        "lstm.weight_hh_l0": f"inside LSTM, {whole}",
        "pair": "Bilinear has no quantizer here",
        "free": "matmul has no quantizer here",
    }
    # The first convolution, the layer that makes weights, two of the attention, the classifier.
    assert (coverage.weights, coverage.weights_of) == (5, 14)
    # Two inputs of the bilinear layer.
    assert coverage.inputs_of == 15
    inputs = in_float(coverage.float_inputs)
    assert inputs["fc"].startswith("follows LayerNorm") and inputs["conv"] == "the image"
    # A quantized input counts although the layer's weights are in floating point.
    assert not {"up", "odd", "doubled", "rows", "conv2d"} & set(inputs)


def test_a_recurrent_layer_inside_a_leaf_is_counted():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.out = nn.LSTM(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.out(self.lstm(x)[0]) if bool(x.sum() < 1e9) else x

    class WithLeaf(TinyNet):
        def __init__(self):
            super().__init__()
            self.mixer = Recurrent()

        def forward(self, x):
            x = self.relu(self.bn1(self.conv1(x)))
            x = self.relu(self.bn2(self.conv2(x))).amax((2, 3))
            return self.fc(self.mixer(x))

    coverage = covered(WithLeaf(), leaves=("mixer",))
    assert coverage.placement == "after_relu"
    reason = "inside Recurrent, which stays whole: quantization.leaf_modules"
    names = ["mixer.lstm.weight_ih_l0", "mixer.lstm.weight_hh_l0", "mixer.out"]
    assert in_float(coverage.float_weights) == dict.fromkeys(names, reason)
    assert (coverage.weights, coverage.weights_of) == (3, 6)
    assert (coverage.inputs, coverage.inputs_of) == (1, 6)


def test_what_makes_the_image_is_no_activation():
    class Normalising(TinyNet):
        def forward(self, x):
            return super().forward(torch.cat([x[:, :1] * 0.5 + 1, x[:, 1:]], 1))

    coverage = covered(Normalising())
    assert coverage.placement == "after_relu"
    assert in_float(coverage.float_inputs)["conv1"] == "computed from the image alone"


def test_a_layer_that_is_called_twice_is_one_layer_with_two_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.conv(functional.relu(self.conv(x))).mean((2, 3))

    coverage = covered(Twice())
    assert (coverage.weights_of, coverage.inputs, coverage.inputs_of) == (1, 1, 2)


def test_every_run_prints_and_records_it(tmp_path, capsys):
    result = synq_fast.quantize(
        tiny_net(), input_shape=SHAPE, output=tmp_path / "run", overrides=_FAST, progress=True
    )
    error = capsys.readouterr().err
    line = "quantized: 3 of 3 weight layers, 1 of 3 layer inputs (placement after_relu)"
    assert line in error
    assert "  input in float: conv1 (the image)" in error
    assert error.index(line) < error.index("synthesis:")
    recorded = json.loads((tmp_path / "run" / "metrics.json").read_text())["coverage"]
    assert result.metrics["coverage"] == recorded
    assert recorded["weights_of"] == 3 and recorded["float_inputs"][0]["name"] == "conv1"
    for model in (result.model, tmp_path / "run"):
        assert synq_fast.coverage(model, tiny_net()).as_dict() == recorded


_FAST = {
    "synthesis.images": 8,
    "synthesis.batch_size": 4,
    "synthesis.steps": 1,
    "quantization.calibration_batches": 1,
    "quantization.calibration_batch_size": 4,
    "finetune.steps": 1,
    "finetune.batch_size": 4,
}


@pytest.mark.parametrize("module", [tiny_net(), TRACED], ids=["module", "traced"])
def test_coverage_of_a_float_model_is_refused(module):
    with pytest.raises(ModelError, match="no model that synq-fast quantized"):
        synq_fast.coverage(module)


def test_long_lists_are_cut_in_print_only():
    coverage = covered(torchvision.models.mobilenet_v2(weights=None), example=COLOUR)
    lines = str(coverage).splitlines()
    assert len(lines) == 5 and max(map(len, lines)) < 160
    assert "and 7 more (follows add" in lines[3]
    assert len(coverage.float_inputs) == 19


def test_resolved_placement_is_saved(tmp_path):
    class Smooth(TinyNet):
        def forward(self, x):
            x = functional.silu(self.bn1(self.conv1(x)))
            return self.fc(functional.silu(self.bn2(self.conv2(x))).mean((2, 3)))

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run(Smooth(), output=tmp_path / "run")
    assert result.recipe.quantization.placement == "all_inputs"
    assert 'placement = "all_inputs"' in (tmp_path / "run" / "recipe.toml").read_text()
    loaded = synq_fast.load(tmp_path / "run", model=Smooth())
    assert synq_fast.coverage(loaded) == synq_fast.coverage(result.model)
    images = tiny_images(4)
    assert torch.equal(loaded(images), result.model(images))
