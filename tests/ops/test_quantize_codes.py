import pytest
import torch

from synq_fast import ops
from synq_fast.testing.cases._quantization import special_values, ties
from tests.ops.backends import BACKENDS, require


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
