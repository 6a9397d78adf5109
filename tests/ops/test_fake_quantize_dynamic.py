import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synq_fast import ops, reference
from tests.ops.backends import BACKENDS, assert_same, require


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


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("bits", range(2, 17))
def test_symmetric_ranges_have_no_zero_point(backend, device, bits):
    """Plain [-a, a] would have the zero point 1 in about a fifth of these channels."""
    require(backend)
    x = torch.randn(3000, 5, device=device) * torch.logspace(-8, 20, 3000, device=device)[:, None]
    x[0], x[1] = 0.0, torch.tensor([-3.0, -2.0, -3.0, -1.0, -2.0])
    with ops.backend(backend):
        y, low, high = ops.fake_quantize_dynamic(x, bits, axis=0, symmetric=True)
        codes, scale, zero_point = ops.quantize_codes(x, low, high, bits, axis=0)
        given = ops.fake_quantize(x, low, high, bits, axis=0)
        mirrored, *_ = ops.fake_quantize_dynamic(-x, bits, axis=0, symmetric=True)
    assert (zero_point == 0).all()
    assert codes.abs().max() == 2 ** (bits - 1) - 1
    largest = x.abs().amax(1).clamp(min=5e-9)
    assert torch.equal(high, largest)
    torch.testing.assert_close(low, -largest, rtol=2e-6, atol=0)
    assert torch.equal(given, y)
    assert torch.equal(mirrored, -y)
    assert torch.equal(codes / scale[:, None], y)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_symmetric_ranges_clip_nothing(backend):
    require(backend)
    x = torch.randn(200, 9, requires_grad=True)
    with ops.backend(backend):
        y, *_ = ops.fake_quantize_dynamic(x, 2, axis=0, symmetric=True, ste="clip")
    y.sum().backward()
    assert (x.grad == 1).all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_groups_equal_a_view_with_an_axis_of_groups(backend, device, dtype):
    """And the static ops over these ranges agree, forward and backward."""
    require(backend)
    for shape, axis in (((6, 35), 0), ((5, 12, 7), 1), ((5, 12, 7), -2), ((40, 24), 1)):
        for groups in (1, 2, 3):
            x = torch.randn(shape, device=device).to(dtype)
            place = axis % x.ndim
            viewed = x.unflatten(place, (groups, -1))
            expected = reference.fake_quantize_dynamic(viewed, 4, axis=place)
            options = {"axis": axis, "groups": groups}
            with ops.backend(backend):
                y, low, high = ops.fake_quantize_dynamic(x, 4, **options)
                leaf = x.clone().requires_grad_()
                static = ops.fake_quantize(leaf, low * 0.7, high * 0.7, 4, ste="clip", **options)
                static.sum().backward()
                codes, scale, zero = ops.quantize_codes(x, low, high, 4, **options)
            for actual, wanted in zip((y, low, high), expected, strict=True):
                assert_same(actual, wanted.reshape(actual.shape))
            assert low.shape == scale.shape == zero.shape == (groups,)
            twin = viewed.clone().requires_grad_()
            again = reference.fake_quantize(twin, low * 0.7, high * 0.7, 4, axis=place, ste="clip")
            again.sum().backward()
            assert_same(static, again.reshape(shape))
            assert_same(leaf.grad, twin.grad.reshape(shape))
            assert_same(
                codes, reference.quantize_codes(viewed, low, high, 4, axis=place)[0].reshape(shape)
            )
