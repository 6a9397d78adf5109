"""The correction of weights for the rounding of what they multiply."""

import pytest
import torch
from torch import nn

from synq_fast.engine.student import build_student
from synq_fast.finetune import ridge
from synq_fast.finetune.ridge import (
    Products,
    apply_corrections,
    corrected_layers,
    ridge_corrections,
)
from synq_fast.graph.trace import trace
from synq_fast.quant import ActivationQuantizer, BitWidths, observing
from synq_fast.quant.settings import Quantization
from synq_fast.reference import fake_quantize
from tests.transformers import SHAPE, tiny_vit


def rows(seed=0, count=50, columns=6):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, columns, generator=g) * torch.linspace(0.3, 2, columns) + 0.2
    return x, fake_quantize(x, x.min(), x.max(), 3)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("share", [1e-3, 0.3, 10.0])
def test_the_correction_solves_the_least_squares(biased, share):
    x, q = rows()
    w = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    products = Products(6, biased, x.device)
    products.add(x, q)
    found = products.correction(w, share)
    design = torch.cat([q, torch.ones(len(q), 1)], 1).double() if biased else q.double()
    lam = share * float(design.square().sum(0).mean())
    target = (x.double() - q.double()) @ w.double().T
    stacked = torch.cat([design, lam**0.5 * torch.eye(design.shape[1]).double()])
    filled = torch.cat([target, torch.zeros(design.shape[1], 4).double()])
    expected = torch.linalg.lstsq(stacked, filled).solution.T
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_sums_of_parts_are_those_of_all(monkeypatch):
    x, q = rows()
    whole, parts = (Products(6, True, x.device) for _ in range(2))
    whole.add(x, q)
    monkeypatch.setattr(ridge, "ROWS", 7)
    parts.add(x[:20], q[:20])
    parts.add(x[20:], q[20:])
    torch.testing.assert_close(parts.squares, whole.squares, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.errors, whole.errors, rtol=1e-12, atol=1e-12)


def test_where_nothing_was_read_nothing_is_corrected():
    products = Products(3, False, torch.device("cpu"))
    products.add(torch.zeros(5, 3), torch.zeros(5, 3))
    assert torch.equal(products.correction(torch.ones(2, 3), 0.1), torch.zeros(2, 3).double())


def student(bits=3, seed=0, **recipe):
    teacher = tiny_vit(seed)
    graph = trace(teacher.module.requires_grad_(False), teacher.example())
    options = Quantization(**{"placement": "vit", "range": "minmax", **recipe})
    made = build_student(graph, BitWidths(8, bits), options, ()).eval()
    images = torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(4))
    with torch.no_grad(), observing(made):
        made(images)
    return teacher.module, made, list(images.split(8))


def read_by(network, name, images):
    seen = []
    handle = network.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].flatten(0, -2))
    )
    network(torch.cat(images))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("weights", ["minmax", "mse", "learned"])
def test_linear_layers_err_less_on_the_calibration_images(weights):
    network, made, batches = student(weight_range=weights)
    pairs = corrected_layers(made)
    # qkv, proj, fc1 and fc2 of two layers, and the classifier; not the convolution.
    assert len(pairs) == 9 and "patches" not in pairs
    before = {n: t.clone() for n, t in made.state_dict().items()}
    found = ridge_corrections(made, batches, 0.01)
    assert all(torch.equal(t, before[n]) for n, t in made.state_dict().items())
    apply_corrections(made, found)
    for name, (layer, quantizer) in pairs.items():
        x = read_by(network, name, batches)
        own = network.get_submodule(name)
        with torch.no_grad():
            q, wanted = quantizer(x), own(x)
            as_it_was = (own(q) - wanted).square().sum()
            now = (nn.functional.linear(q, layer.weight, layer.bias) - wanted).square().sum()
        assert now < as_it_was, name
        assert layer.gain is None or torch.equal(layer.gain, torch.ones_like(layer.gain))
    changed = {n for n, t in made.state_dict().items() if not torch.equal(t, before[n])}
    assert {n.rpartition(".")[0] for n in changed} == set(pairs)


def test_a_large_ridge_changes_nothing_and_a_small_one_more():
    _, made, batches = student()
    sizes = [
        sum(float(v.square().sum()) for v in ridge_corrections(made, batches, share).values())
        for share in (1e3, 1.0, 1e-3)
    ]
    assert sizes[0] < 1e-4 * sizes[1] and sizes[1] < sizes[2]


def test_layers_may_be_summed_in_several_passes(monkeypatch):
    _, made, batches = student()
    together = ridge_corrections(made, batches, 0.1)
    monkeypatch.setattr(ridge, "AT_ONCE", 5000)
    groups = list(ridge._groups(corrected_layers(made)))
    assert 1 < len(groups) < 9 and sum(map(len, groups)) == 9
    apart = ridge_corrections(made, batches, 0.1)
    assert together.keys() == apart.keys()
    assert all(torch.equal(value, apart[name]) for name, value in together.items())
    for module in made.modules():
        assert not module._forward_pre_hooks
        if isinstance(module, ActivationQuantizer):
            assert not module.bypass


class Shared(nn.Module):
    """One layer reads two values, another none that is quantized by itself."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 12)
        self.twice, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x).flatten(1)
        return self.head(self.twice(torch.tanh(self.twice(x))))


def test_a_layer_of_several_quantizers_stays_as_it_is():
    graph = trace(Shared().eval(), torch.randn(2, *SHAPE))
    made = build_student(graph, BitWidths(8, 3), Quantization(placement="all_inputs"), ())
    assert set(corrected_layers(made)) == {"head"}
