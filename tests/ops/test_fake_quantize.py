import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synq_fast import ops, reference
from tests.golden_cases import golden_cases
from tests.ops.backends import BACKENDS, assert_same, require
from tests.ops.cases import ALL, axes, channel_ranges, layouts, special_values, ties
from tests.recording import recorded

BITS = (2, 3, 4, 5, 8, 9, 16)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_golden(golden, backend, device):
    require(backend)
    for name, case in golden_cases(golden("fake_quantize")):
        axis = 0 if case["kind"] == "per_channel" else None
        x, low, high = (case[key].to(device) for key in ("x", "min", "max"))
        with ops.backend(backend):
            y = ops.fake_quantize(x, low, high, case["bits"], axis=axis)
        assert torch.equal(y.cpu(), case["y"]), name


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(("shape", "dtype"), ALL)
def test_equals_the_reference(backend, device, shape, dtype):
    require(backend)
    for layout, x in layouts(shape, dtype).items():
        x = x.to(device)
        for axis in axes(x):
            low, high = (bound.to(device) for bound in channel_ranges(x, axis))
            for bits in (3, 8):
                expected = reference.fake_quantize(x, low, high, bits, axis=axis)
                with ops.backend(backend):
                    y = ops.fake_quantize(x, low, high, bits, axis=axis)
                assert y.dtype == dtype, (layout, axis)
                # Strides of dimensions without a second element say nothing.
                kept = layout in ("contiguous", "channels_last", "transposed")
                if kept and min(x.shape, default=0) > 1:
                    assert y.stride() == x.stride(), (layout, axis)
                assert_same(y, expected)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("bits", BITS)
def test_ties_and_ends(backend, device, bits):
    require(backend)
    for low, high in ((-1.0, 1.0), (0.0, 3.7), (-2.0, -0.3), (1e-3, 1.1e-3), (-3e4, 1.0)):
        x = ties(bits, low, high).to(device)
        for ste in ("identity", "clip"):
            results = []
            for chosen in ("reference", backend):
                leaf = x.clone().requires_grad_()
                with ops.backend(chosen):
                    y = ops.fake_quantize(leaf, low, high, bits, ste=ste)
                y.backward(torch.arange(1.0, 1 + x.numel(), device=device))
                results.append((y.detach(), leaf.grad))
            for actual, expected in zip(results[1], results[0], strict=True):
                assert_same(actual, expected)


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


def test_identity_gradient_saves_nothing():
    x = torch.randn(20, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = ops.fake_quantize(x, -0.1, 0.1, 4)
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


@pytest.mark.parametrize("ste", ["identity", "clip"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_second_derivative(backend, ste):
    require(backend)
    x = torch.tensor([-3.0, 0.2, 3.0], requires_grad=True)
    weight = torch.ones(3, requires_grad=True)
    with ops.backend(backend):
        y = ops.fake_quantize(x, -1.0, 1.0, 4, ste=ste)
    (gradient,) = torch.autograd.grad((y * weight).sum(), x, create_graph=True)
    gradient.sum().backward()
    assert weight.grad.tolist() == ([1, 1, 1] if ste == "identity" else [0, 1, 0])


def test_gradient_of_other_layouts():
    x = torch.randn(2, 6, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    low, high = channel_ranges(x, 1)
    ops.fake_quantize(x, low, high, 4, axis=1, ste="clip").sum().backward()
    leaf = x.detach().clone().requires_grad_()
    reference.fake_quantize(leaf, low, high, 4, axis=1, ste="clip").sum().backward()
    assert_same(x.grad, leaf.grad)


def test_scalar_range_serves_every_channel():
    x = torch.randn(3, 4)
    assert_same(ops.fake_quantize(x, -1, 1, 4, axis=1), ops.fake_quantize(x, -1.0, 1.0, 4))
    one = torch.tensor([1.0])
    assert_same(ops.fake_quantize(x, -one, one, 4), ops.fake_quantize(x, -1.0, 1.0, 4))


def test_noncontiguous_ranges():
    x = torch.randn(3, 4)
    low = torch.tensor(-1.0).expand(4)
    high = torch.arange(1.0, 9.0)[::2]
    assert_same(
        ops.fake_quantize(x, low, high, 4, axis=1), reference.fake_quantize(x, low, high, 4, axis=1)
    )


def test_autocast_keeps_the_type():
    x = torch.randn(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.fake_quantize(x, -1.0, 1.0, 4)
    assert y.dtype == torch.float32
    assert_same(y, ops.fake_quantize(x, -1.0, 1.0, 4))


@pytest.mark.cuda
def test_cuda_graph():
    x = torch.randn(1000, device="cuda")
    low, high = torch.tensor(-1.0, device="cuda"), torch.tensor(1.0, device="cuda")
    graph, (y, z) = recorded(
        lambda: (ops.fake_quantize(x, low, high, 4), ops.fake_quantize(x, -2.0, 2.0, 4))
    )
    x.copy_(torch.randn(1000))
    graph.replay()
    assert_same(y, reference.fake_quantize(x, low, high, 4))
    assert_same(z, reference.fake_quantize(x, -2.0, 2.0, 4))
