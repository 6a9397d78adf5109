import pytest
import torch

from synq_fast import ops, reference
from tests.golden_cases import golden_cases
from tests.ops.backends import BACKENDS, assert_same, require
from tests.ops.cases import ALL, axes, channel_ranges, layouts, special_values, ties


def dequantize(codes, scale, zero_point, axis):
    shape = [-1 if dim == axis else 1 for dim in range(codes.ndim)] if axis is not None else ()
    return (codes + zero_point.reshape(shape)) / scale.reshape(shape)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_golden(golden, backend, device):
    require(backend)
    for name, case in golden_cases(golden("fake_quantize")):
        axis = 0 if case["kind"] == "per_channel" else None
        x, low, high = (case[key].to(device) for key in ("x", "min", "max"))
        with ops.backend(backend):
            result = ops.quantize_codes(x, low, high, case["bits"], axis=axis)
        assert torch.equal(dequantize(*result, axis).cpu(), case["y"]), name


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(("shape", "dtype"), ALL)
def test_equals_the_reference(backend, device, shape, dtype):
    require(backend)
    for x in layouts(shape, dtype).values():
        for axis in axes(x):
            low, high = channel_ranges(x, axis)
            for bits in (4, 8, 9):
                expected = reference.quantize_codes(x, low, high, bits, axis=axis)
                arguments = (x.to(device), low.to(device), high.to(device), bits)
                with ops.backend(backend):
                    results = ops.quantize_codes(*arguments, axis=axis)
                for actual, wanted in zip(results, expected, strict=True):
                    assert_same(actual, wanted)


@pytest.mark.parametrize("bits", range(2, 17))
def test_range_and_type_of_codes(bits):
    codes, scale, zero_point = ops.quantize_codes(ties(bits, -1.0, 3.0), -1.0, 3.0, bits)
    assert codes.dtype == (torch.int8 if bits <= 8 else torch.int16)
    assert codes.min() == -(2 ** (bits - 1)) and codes.max() == 2 ** (bits - 1) - 1
    assert scale.shape == zero_point.shape == ()
    assert scale.dtype == zero_point.dtype == torch.float32


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_special_values(backend, device):
    require(backend)
    x = special_values().to(device)
    with ops.backend(backend):
        codes, *_ = ops.quantize_codes(x, -1.0, 1.0, 8)
        spoiled, *_ = ops.quantize_codes(x, float("nan"), 1.0, 8)
    assert (codes[x.isnan()] == 0).all()
    assert (codes[x == float("inf")] == 127).all() and (codes[x == -float("inf")] == -128).all()
    assert (spoiled == 0).all()


def test_not_differentiable():
    x = torch.randn(5, requires_grad=True)
    assert not any(result.requires_grad for result in ops.quantize_codes(x, -1.0, 1.0, 4))
