"""Equalized channels through the engine: trained, saved, loaded, frozen, exported."""

import warnings

import pytest
import torch
from torch import nn

import synq_fast
from synq_fast.engine.run import Run
from synq_fast.engine.stages import STAGES, Made
from synq_fast.errors import ModelError
from synq_fast.models import Teacher
from synq_fast.quant import BitWidths
from synq_fast.recipes import load_recipe
from synq_fast.reporting.layers import measure_layers
from tests.deployment.conftest import Residual
from tests.tiny import TINY_OVERRIDES, equal_states, randomize_statistics, run, tiny_net

SHAPE = (3, 16, 16)
ALWAYS = {"quantization.equalize": "always"}
FEW = {"blocks.images": 8, "blocks.steps": 2, "blocks.batch_size": 4, "blocks.mix": 1.0}


def uneven(build=Residual) -> Teacher:
    """Some channels are large behind the norm before the depthwise convolution."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = randomize_statistics(build()).eval()
        net.norm1.weight.data *= torch.exp(1.5 * torch.randn(16))
    return Teacher(net, build.__name__, SHAPE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 5)


def small(teacher, recipe="synq-fast-digits", **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has no effect")
        return run(teacher, recipe=recipe, **options)


@pytest.mark.parametrize("placement", ["after_relu", "integer"])
def test_the_model_is_saved_and_loaded(tmp_path, placement):
    teacher = uneven()
    before = {n: v.clone() for n, v in teacher.module.state_dict().items()}
    overrides = {**FEW, **ALWAYS, "quantization.placement": placement}
    result = small(teacher, overrides=overrides, bits="w8a8", output=tmp_path)
    images = torch.randn(6, *SHAPE)
    loaded = synq_fast.load(tmp_path, model=Residual())
    assert equal_states(loaded, result.model)
    assert torch.equal(loaded(images), result.model(images))
    assert all(torch.equal(v, before[n]) for n, v in teacher.module.state_dict().items())
    gain = result.model.get_submodule("norm1").weight / teacher.module.norm1.weight
    assert gain.min() >= 0.99 and gain.max() > 2
    if placement == "integer":
        frozen = synq_fast.load(tmp_path, model=Residual(), execution="frozen")
        scale = teacher.module(images).abs().max()
        assert (frozen(images) - result.model(images)).abs().max() < 0.05 * scale


class Chain(nn.Module):
    """One value alive everywhere, so that a block ends before the depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.second, self.norm2 = nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.norm1(self.stem(x)))
        return self.head(torch.relu(self.norm2(self.second(x))).mean((2, 3)))


def test_training_compares_equalized_values():
    """At 8 bits the first distances are small, as both networks are equalized."""

    def first(**overrides) -> float:
        overrides = {**FEW, "quantization.range": "minmax", **overrides}
        history = small(uneven(Chain), overrides=overrides, bits="w8a8").history
        return max(r["local"] for r in history if r["stage"] == "blocks")

    assert 0 < first(**ALWAYS) < 100 * first()


def test_layers_are_compared_with_equalized_ones():
    recipe = load_recipe("synq-digits", {**TINY_OVERRIDES, **ALWAYS})
    made = Run(uneven(), recipe, BitWidths(8, 8), torch.device("cpu"))
    images = torch.randn(4, *SHAPE)
    rows = measure_layers(made.build_student(), images, made.graph).weights
    assert min(row.noise_db for row in rows) > 30
    unlike = measure_layers(made.build_student(), images, made.traced).weights
    assert min(row.noise_db for row in unlike) < 10


def test_noise_that_relu6_ends_is_no_reason_to_refuse():
    """Statistics that say little of what noise brings, as in pre-trained networks."""
    teacher = uneven()
    teacher.module.norm1.running_var *= 1e-4
    said: list[str] = []
    recipe = load_recipe("synq-digits", {**TINY_OVERRIDES, **ALWAYS})
    made = Run(teacher, recipe, BitWidths(8, 8), torch.device("cpu"))
    made.reporter.line = said.append
    stage = Made(made.build_student())
    STAGES["calibration"](made, STAGES["synthesis"](made, stage))
    (line,) = (line for line in said if line.startswith("equalize: the float"))
    moved = float(line.split(" by ")[1].split("%")[0])
    assert moved > 0.1
    images = torch.randn(4, *SHAPE)
    assert not torch.allclose(made.graph(images), made.traced(images), rtol=1e-3)


def test_a_network_without_such_channels_is_left_alone_or_refused():
    result = small(tiny_net(), "synq-digits", overrides={"quantization.equalize": "auto"})
    assert result.recipe.quantization.equalize == "never"
    with pytest.raises(ModelError, match=r"no depthwise convolution alone.*equalize = \"never\""):
        small(tiny_net(), "synq-digits", overrides=ALWAYS)


def test_an_equalized_model_is_exported(tmp_path):
    pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    pytest.importorskip("onnxscript", reason="the export extra is not installed")
    overrides = {**FEW, **ALWAYS, "quantization.placement": "integer"}
    small(uneven(), overrides=overrides, bits="w8a8", output=tmp_path / "run")
    report = synq_fast.export(
        tmp_path / "run", tmp_path / "net.onnx", architecture=Residual(), compare=False
    )
    assert [check.passed for check in report.checks] == [True, True]
