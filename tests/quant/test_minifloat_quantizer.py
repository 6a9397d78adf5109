"""Small floats behind GELU."""

import pytest
import torch
from torch import nn

from synq_fast import ops
from synq_fast.deployment.freezing import freeze
from synq_fast.engine.student import build_student
from synq_fast.errors import ModelError
from synq_fast.finetune.linear_inputs import fit_linear_inputs
from synq_fast.graph.trace import trace
from synq_fast.quant import ActivationQuantizer, BitWidths, fused, observing
from synq_fast.quant.minifloat_quantizer import MinifloatQuantizer
from synq_fast.quant.settings import Quantization
from tests.transformers import tiny_vit


def student_of(bits=4, **options):
    """A calibrated student of two blocks, and images."""
    teacher = tiny_vit()
    graph = trace(teacher.module, teacher.example())
    student = build_student(graph, BitWidths(4, bits), Quantization(range="minmax", **options), ())
    images = torch.randn(6, *teacher.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), observing(student):
        student(images)
    return student, images


def of_kind(student, kind):
    return [name for name, module in student.named_modules() if type(module) is kind]


@pytest.mark.parametrize(
    ("options", "placed"),
    [
        ({"bits": 4, "after_gelu": "minifloat"}, 2),
        ({"bits": 8, "after_gelu": "minifloat"}, 2),
        ({"bits": 2, "after_gelu": "minifloat"}, 0),
        ({"bits": 3, "after_gelu": "auto"}, 2),
        ({"bits": 5, "after_gelu": "auto"}, 2),
        ({"bits": 6, "after_gelu": "auto"}, 0),
        ({"bits": 4, "after_gelu": "auto", "placement": "integer"}, 0),
        ({"bits": 4}, 0),
    ],
)
def test_only_what_gelu_gives_gets_them(options, placed):
    student, _ = student_of(**options)
    found = of_kind(student, MinifloatQuantizer)
    assert len(found) == placed
    for node in student.graph.nodes:
        if node.target in found:
            (source,) = node.all_input_nodes
            gelu = source.op == "call_module" and student.get_submodule(source.target)
            assert isinstance(gelu, nn.GELU) or source.target is nn.functional.gelu
    plain, _ = student_of(**options | {"after_gelu": "uniform"})
    everywhere = of_kind(plain, ActivationQuantizer)
    assert sorted([*of_kind(student, ActivationQuantizer), *found]) == sorted(everywhere)


@pytest.mark.parametrize("activation", [nn.SiLU, nn.Hardswish])
def test_silu_and_hard_swish_have_such_tails_too(activation):
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation(), nn.Conv2d(4, 2, 3), nn.Flatten()
    ).eval()
    graph = trace(module, torch.randn(2, 3, 8, 8))
    student = build_student(graph, BitWidths(4, 4), Quantization(after_gelu="auto"), ())
    assert len(of_kind(student, MinifloatQuantizer)) == 1


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_values(bits):
    quantizer = MinifloatQuantizer(bits)
    x = nn.functional.gelu(3 * torch.randn(4, 9, 7, generator=torch.Generator().manual_seed(0)))
    quantizer.start_observing()
    quantizer(x)
    quantizer.stop_observing()
    assert torch.equal(quantizer.range_min, x.min()) and torch.equal(quantizer.range_max, x.max())
    y = quantizer(x)
    assert torch.equal(y, ops.fake_quantize_minifloat(x, x.min(), x.max(), bits))
    levels = quantizer.levels()
    assert len(levels) == 2**bits and bool((levels.diff() > 0).all())
    nearest = levels[(y.double().view(-1, 1) - levels).abs().argmin(1)]
    torch.testing.assert_close(y.double().view(-1), nearest, rtol=0, atol=1e-6)
    low, high = quantizer.ends()
    inside = (x >= low) & (x <= high)
    widest = float(levels.diff().max()) / 2
    assert float((y - x)[inside].abs().max()) <= widest * (1 + 1e-5)


@pytest.mark.parametrize("policy", ["mse", "output", "minmax", "ema"])
def test_the_range_holds_the_tail_whatever_a_uniform_grid_would_take(policy):
    g = torch.Generator().manual_seed(3)
    x = nn.functional.gelu(torch.randn(4000, generator=g).exp() - 1)
    quantizer, uniform = MinifloatQuantizer(4, policy=policy), ActivationQuantizer(4, policy=policy)
    for one in (quantizer, uniform):
        one.start_observing()
        one(x)
        one.stop_observing()
    torch.testing.assert_close(quantizer.range_min, x.min())
    torch.testing.assert_close(quantizer.range_max, x.max())
    if policy in ("mse", "output"):
        assert uniform.range_max < 0.9 * x.max()
        cut = quantizer.on_range(x, uniform.range_min, uniform.range_max)
        assert (quantizer(x) - x).square().sum() < (cut - x).square().sum()


def test_no_parameter_and_no_uniform_grid():
    quantizer = MinifloatQuantizer(4)
    assert list(quantizer.parameters()) == []
    with pytest.raises(ModelError, match=r"small floats.*after_gelu = uniform"):
        quantizer.grid()


def test_dropped_elements_pass():
    quantizer = MinifloatQuantizer(3)
    x = torch.rand(8, 5, 9).add_(0.01)
    quantizer.take(torch.zeros(()), x.amax())
    whole = quantizer(x)
    quantizer.keep, quantizer.seed, quantizer.part = 0.5, torch.tensor(5), (0, 8)
    mixed = quantizer(x)
    passed = mixed == x
    assert 0.4 < passed.float().mean() < 0.6
    assert torch.equal(mixed, torch.where(passed, x, whole))
    quantizer.part = (4, 4)
    assert torch.equal(quantizer(x[4:]), mixed[4:])


def test_the_gradient_passes_within_the_levels_alone():
    quantizer = MinifloatQuantizer(4)
    quantizer.take(torch.tensor(-0.2), torch.tensor(6.0))
    x = torch.tensor([-1.0, -0.1, 0.3, 5.0, 9.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_fused_networks_compute_the_same():
    student, images = student_of(placement="vit", after_gelu="auto")
    fit_linear_inputs(student, images)
    student.eval()
    with torch.no_grad():
        torch.testing.assert_close(fused(student)(images), student(images), rtol=1e-5, atol=1e-5)


def test_what_has_no_form_in_integers_is_refused():
    student, _ = student_of(placement="vit", after_gelu="auto")
    with pytest.raises(ModelError, match=r"quantization\.after_gelu = uniform"):
        freeze(student.eval())
