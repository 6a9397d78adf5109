"""Products of codes in Triton's interpreter, bit for bit those of the plain twin."""

import itertools
from fractions import Fraction

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synq_fast.deployment.execution import product_form
from synq_fast.deployment.freezing import freeze
from synq_fast.reference import _int8_product as plain
from synq_fast.reference._int8_product import Grid
from tests.deployment.conftest import bottleneck, noise, quantized, residual
from tests.transformers import tiny_vit

# What the last grids leave out, and one of fewer bits than codes have.
GRIDS = (Grid.of(0.013, 0, 255), Grid.of(0.4, 131, 255), Grid.of(2e-3, 128, 255), Grid.of(3, 7, 15))


@pytest.fixture(scope="module")
def kernels():
    from synq_fast import kernels

    return kernels


def codes_of(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)


def operands(rows: int, columns: int, depth: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    bias = torch.randint(-(2**20), 2**20, (columns,), generator=generator, dtype=torch.int32)
    multiplier = torch.rand(columns, generator=generator) * 1e-4
    weight = codes_of(generator, columns, depth)
    return codes_of(generator, rows, depth), weight, bias, multiplier


def compare(kernels, parts, grid=None, added=None, added_grid=None, dtype=torch.float32) -> None:
    ours = kernels.int8_product(*parts, grid, added, added_grid, dtype)
    twin = plain.int8_product(*parts, grid=grid, added=added, added_grid=added_grid, dtype=dtype)
    assert ours.dtype == twin.dtype and torch.equal(ours, twin)


SIZE = st.one_of(st.integers(0, 3), st.sampled_from([15, 16, 17, 31, 33, 64, 65, 127, 129, 200]))


@given(SIZE, SIZE, SIZE, st.sampled_from([None, *GRIDS]), st.booleans(), st.integers(0, 99))
def test_any_shape(kernels, rows, columns, depth, grid, adds, seed) -> None:
    added = codes_of(torch.Generator().manual_seed(seed + 1), rows, columns) if adds else None
    compare(kernels, operands(rows, columns, depth, seed), grid, added, GRIDS[1])


@pytest.mark.parametrize("tile", [(128, 128), (128, 64), (64, 64), (16, 32)], ids=str)
@pytest.mark.parametrize("shape", [(300, 150, 192), (129, 257, 80)], ids=str)
def test_every_tile(kernels, monkeypatch, tile, shape) -> None:
    monkeypatch.setitem(kernels.int8_product.__globals__, "tile_of", lambda *_: tile)
    compare(kernels, operands(*shape, seed=0), GRIDS[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_rows_with_gaps_and_types(kernels, dtype) -> None:
    x, *rest = operands(40, 24, 48, seed=1)
    for view in (x[::2], x[:, 8:40], x.T.contiguous().T):
        weight = rest[0][:, : view.shape[1]].contiguous()
        compare(kernels, (view, weight, *rest[1:]), dtype=dtype)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums(kernels, sign) -> None:
    """Codes of one sign all along, and the largest bias that goes with them."""
    depth = 2048
    x = torch.full((17, depth), -128, dtype=torch.int8)
    weight = torch.full((19, depth), -128 * sign, dtype=torch.int16).clamp(-128, 127)
    bias = torch.full((19,), sign * (2**31 - 1 - 128 * 128 * depth), dtype=torch.int32)
    parts = x, weight.to(torch.int8), bias, torch.ones(19)
    exact = x.long() @ parts[1].long().T + bias
    assert exact.abs().max() > 2**30
    assert torch.equal(kernels.int8_product(*parts, None, None, None, torch.float32), exact.float())
    compare(kernels, parts, Grid.of(2.0**24, 128, 255))


def ties_of(scale: float) -> torch.Tensor:
    """What lies nearest to the middles between two numbers, on both sides, and where they end."""
    middles = numpy.arange(-260, 260, dtype=numpy.float32) + numpy.float32(0.5)
    near = middles * numpy.float32(scale)
    for _ in range(4):
        up, down = (numpy.nextafter(near, numpy.float32(s * numpy.inf)) for s in (1, -1))
        near = numpy.unique(numpy.concatenate([near, up, down]))
    return torch.from_numpy(near)


@given(
    st.floats(2.0**-34, 2.0**110, width=32) | st.integers(-30, 30).map(lambda e: 2.0**e),
    st.integers(0, 255),
)
def test_codes_of_ties(kernels, scale, zero_point) -> None:
    """Those of a division, which the kernel does not do."""
    grid = Grid.of(scale, zero_point, 255)
    x = ties_of(scale)
    assert torch.equal(kernels.int8_codes(x, grid), plain.int8_codes(x, grid))


def hardest(number: int, toward: int) -> list[tuple[float, float]]:
    """Pairs of floats whose quotients lie nearest to where one rounds to the middle of two codes.

    The middle of two floats, an odd `m` of 25 bits, is no quotient of floats; the nearest ones have
    a 2^j = m b +- 1.
    """
    code = numpy.float32(number + 0.5)
    beside = numpy.nextafter(code, numpy.float32(toward * numpy.inf))
    middle = (Fraction(float(code)) + Fraction(float(beside))) / 2
    m, found = middle.numerator, []
    for excess, j in itertools.product((1, -1), (24, 25)):
        b = -excess * pow(m, -1, 2**j) % 2**j
        a = (m * b + excess) // 2**j
        if all(2**23 <= mantissa < 2**24 for mantissa in (a, b)):
            found.append((a * 2**j / middle.denominator, float(b)))
    return found


def test_codes_of_the_hardest_quotients(kernels) -> None:
    pairs = [p for n in range(0, 255, 7) for toward in (1, -1) for p in hardest(n, toward)]
    assert len(pairs) > 30
    for value, scale in pairs:
        for sign in (1, -1):
            x, grid = torch.tensor([sign * value]), Grid.of(scale, 0 if sign > 0 else 255, 255)
            quotient = Fraction(x.item()) / Fraction(scale)
            (ours,) = kernels.int8_codes(x, grid).tolist()
            assert ours == plain.int8_codes(x, grid).item()
            # The float nearest to the quotient, rounded half to even.
            assert ours + grid.offset == round(float(numpy.float32(float(quotient))))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (1025,), (2, 3, 5, 7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_codes_of_any_layout(kernels, shape, dtype) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)
    views = [x, x.T] if x.dim() == 2 else [x]
    if x.dim() == 4:
        views += [x.to(memory_format=torch.channels_last), x[:, :, 1:, ::2], x.expand(4, *shape)[1]]
    for view in views:
        codes = kernels.int8_codes(view, GRIDS[1])
        assert codes.shape == view.shape and torch.equal(codes, plain.int8_codes(view, GRIDS[1]))


def test_codes_of_nan_and_infinity(kernels) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -0.0])
    grid = Grid.of(0.1, 131, 255)
    expected = [0 + 3, 124 + 3, -131 + 3, 124 + 3, 0 + 3]
    assert grid.offset == -3
    assert kernels.int8_codes(x, grid).tolist() == plain.int8_codes(x, grid).tolist() == expected


@pytest.mark.parametrize("bits", ["w4a4", "w8a8", "w3a7"])
@pytest.mark.parametrize("network", [residual, bottleneck, tiny_vit])
def test_networks_are_the_frozen_ones(kernels, network, bits) -> None:
    teacher = network()
    frozen = freeze(quantized(teacher, bits), layer_inputs_only=True)
    products, images = product_form(frozen), noise(teacher, 3)
    assert torch.equal(products(images), frozen(images))
    last = images.to(memory_format=torch.channels_last)
    assert torch.equal(products(last), frozen(last))
