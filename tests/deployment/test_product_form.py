import pytest
import torch
from torch import nn

import synq_fast
from synq_fast.cli import main
from synq_fast.deployment.execution import product_form, product_reason
from synq_fast.deployment.freezing import freeze, frozen_layers
from synq_fast.deployment.frozen import FrozenQuantizer
from synq_fast.deployment.product_modules import (
    CodeNumbers,
    CodeQuantizer,
    ProductLayer,
    fits_product,
)
from synq_fast.engine.saved_model import executed
from synq_fast.errors import ArgumentError, ModelError, SynqFastError
from synq_fast.models import Teacher
from synq_fast.reference._int8_product import Grid, int8_codes, int8_numbers, int8_product
from tests.deployment.conftest import bottleneck, noise, quantized, residual, student
from tests.transformers import tiny_vit


def count(network: nn.Module, kind: type) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize("layer_inputs_only", [True, False])
@pytest.mark.parametrize("bits", ["w4a4", "w8a8", "w3a7"])
@pytest.mark.parametrize(("network", "layers"), [(residual, 3), (bottleneck, 4), (tiny_vit, 10)])
def test_the_frozen_network_bit_for_bit(network, layers, bits, layer_inputs_only):
    teacher = network()
    frozen = freeze(quantized(teacher, bits), layer_inputs_only=layer_inputs_only)
    before = frozen.code
    products, images = product_form(frozen), noise(teacher, 12)
    assert torch.equal(products(images), frozen(images))
    assert torch.equal(products(images[:0]), frozen(images[:0]))
    assert count(products, ProductLayer) == layers - (network is tiny_vit)
    assert frozen.code == before and count(frozen, ProductLayer) == 0


def test_what_a_product_takes_in():
    products = product_form(freeze(quantized(bottleneck(), "w4a4"), layer_inputs_only=True))
    layers = {tuple(m.weight.shape): m for m in products.modules() if isinstance(m, ProductLayer)}
    narrow, wide, short, head = (layers[s] for s in ((10, 24), (24, 10), (33, 24), (5, 33)))
    assert [m.added_grid is not None for m in (narrow, wide, short, head)] == [
        False,
        True,
        False,
        False,
    ]
    # What nobody but a sum or an average reads is in floating point.
    assert narrow.grid is not None and wide.grid is not None and short.grid is None is head.grid
    # Nothing below zero is left behind a ReLU, nor above 6 behind that of ReLU6.
    assert narrow.grid.low == 0 == wide.grid.low and wide.grid.high * wide.grid.scale <= 6.1
    # The image and what the 3 x 3 convolution reads go on in floating point.
    assert count(products, FrozenQuantizer) == 1 and count(products, CodeNumbers) == 1
    assert count(products, CodeQuantizer) == 3


def test_products_outside_the_grid_stay_as_they_are():
    frozen = freeze(student("w4a4", "after_relu"))
    # Averages in floating point round by the order in memory.
    images = noise(residual(), 5).to(memory_format=torch.channels_last)
    products = product_form(frozen)
    assert torch.equal(products(images), frozen(images)) and count(products, ProductLayer) == 2


@pytest.mark.parametrize(
    ("layer", "fits"),
    [
        (nn.Linear(6, 4), True),
        (nn.Conv2d(6, 4, 1, stride=(2, 1)), True),
        (nn.Conv2d(6, 4, 1, dilation=3), True),
        (nn.Conv2d(6, 4, 1, padding=1), False),
        (nn.Conv2d(6, 4, 1, groups=2), False),
        (nn.Conv2d(6, 4, (1, 3)), False),
    ],
    ids=str,
)
def test_which_layers_are_products(layer, fits):
    shape = (6, 5, 7)
    # Made at import; a channel whose few weights have one sign and hardly differ cannot be frozen.
    layer.weight.data = torch.linspace(0.2, 1, layer.weight.numel()).view_as(layer.weight)
    layer.weight.data.flatten()[::2] *= -1
    first: nn.Module = nn.Identity()
    if isinstance(layer, nn.Linear):
        first, shape = nn.Flatten(), (6, 1, 1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layer = first, layer

        def forward(self, x):
            return self.layer(self.first(x)).flatten(1)

    teacher = Teacher(Net().eval(), "one", shape, (0.0,) * 6, (1.0,) * 6, 4)
    frozen = freeze(quantized(teacher, "w4a4"))
    (found,) = frozen_layers(frozen).values()
    assert fits_product(found) == fits
    products, images = product_form(frozen), noise(teacher, 3)
    assert torch.equal(products(images), frozen(images))
    assert count(products, ProductLayer) == fits


def test_sums_beyond_32_bits_are_no_product():
    frozen = freeze(student("w8a8"))
    head = frozen_layers(frozen)["head"]
    assert fits_product(head)
    head.bias[2] = 2**31 - 1
    assert not fits_product(head)


@pytest.mark.parametrize("highest", [3, 15, 127, 255])
def test_codes_fit_int8_whatever_the_zero_point(highest):
    for zero in range(highest + 1):
        grid = Grid.of(0.25, zero, highest)
        ends = torch.tensor([grid.low, grid.high]) - grid.offset
        assert ends[0] >= -128 and ends[1] <= 127 and (grid.offset == 0 or highest == 255)
        x = torch.tensor([-1e9, -0.3, 0.0, 0.125, 0.375, 1e9])
        numbers = torch.tensor([-zero, -1.0, 0.0, 0.0, 2.0, highest - zero])
        expected = numbers.clamp(-zero, highest - zero) * 0.25
        assert torch.equal(int8_numbers(int8_codes(x, grid), grid), expected)


def test_values_by_hand():
    x, weight = torch.tensor([[1, -2], [127, 127]]), torch.tensor([[3, 4], [-127, -127]])
    parts = x.to(torch.int8), weight.to(torch.int8), torch.tensor([5, 0], dtype=torch.int32)
    parts = *parts, torch.tensor([0.5, 1.0])
    assert int8_product(*parts).tolist() == [[0.0, 127.0], [447.0, -32258.0]]
    grid = Grid(2.0, -128, 127, 0)
    # Half a step goes to the even number.
    assert int8_product(*parts, grid=grid).tolist() == [[0, 64], [127, -128]]
    ones = torch.ones(2, 2, dtype=torch.int8)
    added = int8_product(*parts, grid=grid, added=ones, added_grid=Grid(3.0, 0, 9, 1))
    assert added.tolist() == [[3, 66], [127, -128]]


def test_a_device_without_products_is_told(monkeypatch, tmp_path):
    frozen = freeze(student("w4a4"))
    with pytest.raises(ModelError, match='"int8" does not run on meta: integers run on a CPU or'):
        executed(frozen, "int8", torch.device("meta"))
    reasons = {"triton": "Triton is not installed; `pip install triton`"}
    monkeypatch.setattr("synq_fast.deployment.execution.available_backends", lambda: reasons)
    with pytest.raises(ModelError, match="does not run on cuda:0: Triton is not installed"):
        executed(frozen, "int8", torch.device("cuda", 0))
    with pytest.raises(ArgumentError, match="execution is one of"):
        executed(frozen, "int4", torch.device("cpu"))
    reasons["triton"] = None
    assert product_reason(torch.device("cuda")) is None
    assert count(executed(frozen, "int8", torch.device("cuda", 0)), ProductLayer) == 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    settings = {"quantization.placement": "integer", "synthesis.images": 32, "synthesis.steps": 2}
    synq_fast.quantize(
        "digits-resnet20", "calibrate-digits", "w4a4", overrides=settings, output=folder,
        progress=False,
    )  # fmt: skip
    return folder


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_message_says_so(saved, capsys):
    with pytest.raises(SynqFastError, match='cannot work on device "cuda"'):
        synq_fast.load(saved, execution="int8", device="cuda")
    assert main(["evaluate", str(saved), "--execution", "int8", "--device", "cuda"]) != 0
    assert 'cannot work on device "cuda"' in capsys.readouterr().err
