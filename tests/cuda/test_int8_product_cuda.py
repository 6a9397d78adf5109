"""Products of int8 codes on a GPU's tensor cores, bit for bit those of the plain twin."""

import pytest
import torch

import synq_fast
from benchmarks.roofline_int8 import LAYERS
from synq_fast.deployment.execution import product_form, product_reason
from synq_fast.deployment.freezing import freeze
from synq_fast.reference import _int8_product as plain
from synq_fast.reference._int8_product import Grid
from synq_fast.runtime.capture import capture, warm_up
from tests.deployment.conftest import bottleneck, noise, quantized, residual
from tests.kernels.test_int8_product import hardest, operands, ties_of
from tests.transformers import tiny_vit

REASON = product_reason(torch.device("cuda"))
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]

GRID = Grid.of(0.4, 131, 255)
SHAPES = [(1, 1, 1), (0, 4, 4), (3, 5, 0), (129, 257, 77), (17, 1000, 2048), (1000, 31, 80)]
# Each is compiled three times.
SHAPES += [
    pytest.param(layer[1:], marks=[pytest.mark.slow] * (i % 5 > 0))
    for i, layer in enumerate(LAYERS)
]
# More results than 32 bits count.
LONG = (2**31 // 64 + 100, 64, 16)


@pytest.fixture(scope="module")
def kernels():
    from synq_fast import kernels

    return kernels


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products(kernels, shape) -> None:
    parts = [part.cuda() for part in operands(*shape, seed=0)]
    added = torch.randint(-128, 128, shape[:2], device="cuda", dtype=torch.int8)
    for grid, other in ((None, None), (GRID, None), (GRID, added)):
        ours = kernels.int8_product(*parts, grid, other, GRID, torch.float32)
        twin = plain.int8_product(*parts, grid=grid, added=other, added_grid=GRID)
        assert torch.equal(ours, twin)


def test_more_results_than_32_bits_count(kernels) -> None:
    rows, columns, depth = LONG
    _, *parts = (part.cuda() for part in operands(1, columns, depth, seed=0))
    x = torch.randint(-128, 128, (rows, depth), device="cuda", dtype=torch.int8)
    ours = kernels.int8_product(x, *parts, GRID, None, None, torch.float32)
    for part in (slice(0, 1000), slice(rows - 1000, rows)):
        assert torch.equal(ours[part], plain.int8_product(x[part], *parts, grid=GRID))


@pytest.mark.parametrize("scale", [1.0, 0.013557436875998974, 3e-10, 2.0**100])
def test_codes_of_ties(kernels, scale) -> None:
    x = ties_of(scale).cuda()
    for zero_point in (0, 128, 255):
        grid = Grid.of(scale, zero_point, 255)
        assert torch.equal(kernels.int8_codes(x, grid), plain.int8_codes(x, grid))


def test_codes_of_the_hardest_quotients(kernels) -> None:
    for value, scale in (p for n in range(255) for toward in (1, -1) for p in hardest(n, toward)):
        x, grid = torch.tensor([value, -value], device="cuda"), Grid.of(scale, 0, 255)
        assert torch.equal(kernels.int8_codes(x, grid), plain.int8_codes(x, grid))


def test_codes_of_nan_and_infinity(kernels) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -0.0], device="cuda")
    assert kernels.int8_codes(x, GRID).tolist() == [3, 127, -128, 127, 3]


@pytest.mark.parametrize("bits", ["w4a4", "w8a8"])
@pytest.mark.parametrize("network", [residual, bottleneck, tiny_vit])
def test_networks(network, bits) -> None:
    teacher = network()
    frozen = freeze(quantized(teacher, bits), layer_inputs_only=True)
    products = product_form(frozen).cuda()
    images = noise(teacher, 40).cuda().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = frozen.cuda()(images)
        assert torch.equal(products(images), expected)
        warm_up(lambda: products(images), images.device)
        graph, replayed = capture(lambda: products(images), images.device)
        replayed.zero_()
        graph.replay()
        assert torch.equal(replayed, expected)


def test_a_saved_model(tmp_path) -> None:
    settings = {"quantization.placement": "integer", "synthesis.images": 32, "synthesis.steps": 2}
    synq_fast.quantize(
        "digits-resnet20", "calibrate-digits", "w4a4", overrides=settings, output=tmp_path,
        progress=False,
    )  # fmt: skip
    model = synq_fast.load(tmp_path, execution="int8", device="cuda")
    frozen = synq_fast.load(tmp_path, execution="frozen", device="cuda")
    images = torch.randn(64, *synq_fast.load_teacher("digits-resnet20").input_shape, device="cuda")
    agree = (model(images).argmax(1) == frozen(images).argmax(1)).float().mean()
    assert all(p.is_cuda for p in model.buffers()) and agree == 1
