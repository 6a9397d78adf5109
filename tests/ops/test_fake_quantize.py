import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synq_fast import ops, reference
from synq_fast.testing.cases._quantization import special_values
from tests.ops.backends import BACKENDS, assert_same, require


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_special_values(backend, device, dtype):
    require(backend)
    x = special_values().to(dtype).to(device)
    ranges = [(-1.0, 1.0), (0.7, 0.7), (0.0, 0.0), (-1e38, 1e38), (float("nan"), 1.0), (0.0, 1e-12)]
    for low, high in [*ranges, (-float("inf"), 1.0), (0.0, float("inf"))]:
        with ops.backend(backend):
            y = ops.fake_quantize(x, low, high, 4)
        assert_same(y, reference.fake_quantize(x, low, high, 4))
        assert y[x.isnan()].isnan().all()
    with ops.backend(backend):
        y = ops.fake_quantize(x, -1.0, 2.0, 8)
    assert y[x == float("inf")].unique().item() == pytest.approx(2.0, rel=0.01)
    assert y[x == -float("inf")].unique().item() == pytest.approx(-1.0, rel=0.01)


def test_unknown_instruction_set():
    require("cpu")
    code = "from synq_fast import ops; import torch; ops.fake_quantize(torch.ones(2), 0.0, 1.0, 4)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SYNQ_FAST_CPU_ISA": "mmx"},
        capture_output=True,
        text=True,
    )
    assert "ValueError: SYNQ_FAST_CPU_ISA is 'mmx'" in result.stderr


finite = st.floats(-1e4, 1e4, width=32)


@given(
    values=st.lists(finite, min_size=1, max_size=200),
    bounds=st.tuples(finite, finite).map(sorted),
    bits=st.integers(2, 16),
)
def test_properties(values, bounds, bits):
    x = torch.tensor(values).sort().values
    low, high = bounds
    y = ops.fake_quantize(x, low, high, bits)
    assert torch.equal(y, reference.fake_quantize(x, low, high, bits))
    assert (y.diff() >= 0).all(), "not monotone"
    assert y.unique().numel() <= 2**bits
    codes, scale, zero_point = ops.quantize_codes(x, low, high, bits)
    assert torch.equal((codes + zero_point) / scale, y)
    # Near a level that float32 cannot tell from its neighbour a second pass may move on.
    if max(abs(low), abs(high)) < (high - low) * 2**6:
        assert torch.equal(ops.fake_quantize(y, low, high, bits), y), "not idempotent"


# Of the ops that take a range and a straight-through estimator.
QUANTIZERS = (ops.fake_quantize, ops.fake_quantize_minifloat)


@pytest.mark.parametrize("quantize", QUANTIZERS)
def test_identity_gradient_saves_nothing(quantize):
    x = torch.randn(20, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = quantize(x, -0.1, 0.1, 4)
    assert not saved
    gradient = torch.randn(20)
    y.backward(gradient)
    assert torch.equal(x.grad, gradient)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_clipped_gradient(backend):
    require(backend)
    # Over [0, 15] with 4 bits the codes are x - 8: -0.5 and 15.5 round to 0 and 16.
    values = [-1.0, -0.6, -0.5, 0.0, 15.0, 15.4, 15.5, 16.0, float("nan"), float("inf")]
    x = torch.tensor(values, requires_grad=True)
    with ops.backend(backend):
        ops.fake_quantize(x, 0.0, 15.0, 4, ste="clip").sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("quantize", QUANTIZERS)
@pytest.mark.parametrize("ste", ["identity", "clip"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_second_derivative(backend, ste, quantize):
    require(backend)
    x = torch.tensor([-3.0, 0.2, 3.0], requires_grad=True)
    weight = torch.ones(3, requires_grad=True)
    with ops.backend(backend):
        y = quantize(x, -1.0, 1.0, 4, ste=ste)
    (gradient,) = torch.autograd.grad((y * weight).sum(), x, create_graph=True)
    gradient.sum().backward()
    assert weight.grad.tolist() == ([1, 1, 1] if ste == "identity" else [0, 1, 0])


def test_scalar_range_serves_every_channel():
    x = torch.randn(3, 4)
    assert_same(ops.fake_quantize(x, -1, 1, 4, axis=1), ops.fake_quantize(x, -1.0, 1.0, 4))
    one = torch.tensor([1.0])
    assert_same(ops.fake_quantize(x, -one, one, 4), ops.fake_quantize(x, -1.0, 1.0, 4))
