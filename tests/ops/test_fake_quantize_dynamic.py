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


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((3, 50_001), 0),  # rows longer than a core keeps
        ((700, 300), 0),  # many short rows
        ((64, 600), 1),  # columns side by side
        ((9000, 24), 1),  # columns too long to keep
        ((300, 12, 3, 3), 1),  # short pieces
        ((4, 12, 40, 40), 1),  # long pieces
        ((5, 12, 300, 70), 1),  # pieces of channels longer than a core keeps
        ((40_000,), 0),  # an element each
    ],
    ids=str,
)
def test_every_way_to_read(backend, device, shape, axis, symmetric):
    require(backend)
    x = torch.randn(shape)
    for dtype in (torch.float32, torch.bfloat16):
        arguments = {"axis": axis, "symmetric": symmetric}
        expected = reference.fake_quantize_dynamic(x.to(dtype), 4, **arguments)
        with ops.backend(backend):
            results = ops.fake_quantize_dynamic(x.to(device, dtype), 4, **arguments)
        for actual, wanted in zip(results, expected, strict=True):
            assert_same(actual, wanted)


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


def test_groups_of_channels_last():
    x = torch.randn(2, 12, 5, 5).to(memory_format=torch.channels_last)
    for groups in (1, 3, 12):
        y, *ranges = ops.fake_quantize_dynamic(x, 4, axis=1, groups=groups)
        expected = reference.fake_quantize_dynamic(x, 4, axis=1, groups=groups)
        assert y.stride() == x.stride()
        for actual, wanted in zip((y, *ranges), expected, strict=True):
            assert_same(actual, wanted)
    each = ops.fake_quantize_dynamic(x, 4, axis=1)
    for actual, wanted in zip((y, *ranges), each, strict=True):
        assert_same(actual, wanted)
