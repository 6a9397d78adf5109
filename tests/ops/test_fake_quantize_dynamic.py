import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synq_fast import ops, reference
from tests.golden_cases import golden_cases
from tests.ops.backends import BACKENDS, assert_same, require
from tests.ops.cases import ALL, axes, layouts, special_values


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_golden(golden, backend, device):
    require(backend)
    for name, case in golden_cases(golden("fake_quantize")):
        # The clipped cases have a range that is not the data's, the zeros after a ReLU too.
        axis = 0 if case["kind"] == "per_channel" else None
        x = case["x"]
        rows = x.flatten(1) if axis == 0 else x.reshape(1, -1)
        own_range = (rows.amin(1), rows.amax(1))
        with ops.backend(backend):
            y, low, high = ops.fake_quantize_dynamic(x.to(device), case["bits"], axis=axis)
        assert torch.equal(low.cpu().reshape(-1), own_range[0]), name
        assert torch.equal(high.cpu().reshape(-1), own_range[1]), name
        if torch.equal(own_range[0], case["min"]) and torch.equal(own_range[1], case["max"]):
            assert torch.equal(y.cpu(), case["y"]), name


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(("shape", "dtype"), ALL)
def test_equals_the_reference(backend, device, shape, dtype):
    require(backend)
    for x in layouts(shape, dtype).values():
        for axis in axes(x):
            expected = reference.fake_quantize_dynamic(x, 4, axis=axis)
            with ops.backend(backend):
                results = ops.fake_quantize_dynamic(x.to(device), 4, axis=axis)
            for actual, wanted in zip(results, expected, strict=True):
                assert_same(actual, wanted)
            assert results[1].shape == (() if axis is None else (x.shape[axis],))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_nan_spoils_its_channel_only(backend, device):
    require(backend)
    for size in (1, 3, 64, 300, 40000):
        for place in {0, size // 2, size - 1}:
            x = torch.randn(3, size)
            x[1, place] = float("nan")
            with ops.backend(backend):
                y, low, high = ops.fake_quantize_dynamic(x.to(device), 8, axis=0)
                z, *whole = ops.fake_quantize_dynamic(x.to(device), 8)
            assert low.isnan().tolist() == high.isnan().tolist() == [False, True, False]
            assert y.isnan().all(1).tolist() == [False, True, False]
            assert not y[::2].isnan().any()
            assert z.isnan().all() and all(bound.isnan() for bound in whole)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_special_values(backend, device):
    require(backend)
    for x in (special_values()[2:], torch.full((5,), 0.7), torch.zeros(4), -torch.zeros(4)):
        with ops.backend(backend):
            results = ops.fake_quantize_dynamic(x.to(device), 4)
        for actual, wanted in zip(results, reference.fake_quantize_dynamic(x, 4), strict=True):
            assert_same(actual, wanted)


def test_empty_has_no_range():
    y, low, high = ops.fake_quantize_dynamic(torch.empty(0, 3), 4, axis=1)
    assert y.shape == (0, 3)
    assert low.isnan().all() and high.isnan().all() and low.shape == (3,)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=300), st.integers(2, 16))
def test_properties(values, bits):
    x = torch.tensor(values)
    y, low, high = ops.fake_quantize_dynamic(x, bits)
    assert low == x.min() and high == x.max()
    assert torch.equal(y, ops.fake_quantize(x, low, high, bits))
    assert y.unique().numel() <= 2**bits


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("ste", ["identity", "clip"])
def test_gradients(backend, ste):
    require(backend)
    x = torch.randn(4, 50, requires_grad=True)
    with ops.backend(backend):
        y, low, high = ops.fake_quantize_dynamic(x, 3, axis=0, ste=ste)
    assert not low.requires_grad and not high.requires_grad
    gradient = torch.randn(4, 50)
    y.backward(gradient)
    leaf = x.detach().clone().requires_grad_()
    reference.fake_quantize_dynamic(leaf, 3, axis=0, ste=ste)[0].backward(gradient)
    assert_same(x.grad, leaf.grad)
    if ste == "identity":
        assert torch.equal(x.grad, gradient)
