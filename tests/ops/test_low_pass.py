"""Low-pass filters: golden values, a full-spectrum oracle, and the properties of a filter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synq_fast import ops
from synq_fast.reference import _filter_mask
from tests.golden_cases import golden_cases
from tests.tolerances import TOLERANCES, assert_close

KINDS = ("gaussian", "butterworth", "ideal")
SIZES = (
    (1, 1),  # the zero frequency alone
    (2, 1),
    (1, 6),
    (7, 5),  # odd, no Nyquist frequency
    (8, 8),  # even, one unpaired frequency per axis
    (31, 33),
    (32, 32),  # CIFAR
    (64, 48),
    (97, 101),  # primes
    (224, 224),  # ImageNet
)


def full_spectrum(x, cutoff, kind="gaussian", order=2):
    """The filter as textbooks draw it: complex spectrum, zero frequency moved to floor(n/2)."""
    height, width = x.shape[-2:]
    rows = np.arange(height) - height // 2
    columns = np.arange(width) - width // 2
    distance = np.sqrt(rows[:, None] ** 2 + columns**2)
    gain = {
        "gaussian": np.exp(-(distance**2) / (2 * cutoff**2)),
        "butterworth": 1 / (1 + (distance / cutoff) ** (2 * order)),
        "ideal": (rows[:, None] ** 2 + columns**2 <= cutoff**2).astype(float),
    }[kind]
    spectrum = np.fft.fftshift(np.fft.fft2(x.double().numpy()), axes=(-2, -1))
    return np.fft.ifft2(np.fft.ifftshift(spectrum * gain, axes=(-2, -1))).real


def test_golden(golden):
    for _, case in golden_cases(golden("low_pass")):
        assert_close(ops.low_pass(case["x"], case["d0"]), case["y"], "low_pass")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cutoff", [0.5, 3.0, 20.0])
def test_against_full_spectrum(size, kind, cutoff):
    x = torch.randn(2, 3, *size)
    expected = full_spectrum(x, cutoff, kind)
    assert_close(ops.low_pass(x, cutoff, kind=kind), expected, "low_pass")
    assert_close(ops.low_pass(x.double(), cutoff, kind=kind), expected, "low_pass_float64")


@pytest.mark.parametrize("order", [1, 2, 5])
def test_butterworth_order(order):
    x = torch.randn(2, 9, 12)
    actual = ops.low_pass(x, 2.5, kind="butterworth", order=order)
    assert_close(actual, full_spectrum(x, 2.5, "butterworth", order), "low_pass")


@pytest.mark.parametrize("height", [8, 9])
def test_gain_at_the_cutoff(height):
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(height) / height)[:, None].expand(-1, 4)
    assert_close(ops.low_pass(wave, 3.0), wave * float(np.exp(-0.5)), "low_pass")
    assert_close(ops.low_pass(wave, 3.0, kind="butterworth"), wave / 2, "low_pass")
    assert_close(ops.low_pass(wave, 3.0, kind="ideal"), wave, "low_pass")
    assert_close(ops.low_pass(wave, 2.99, kind="ideal"), torch.zeros_like(wave), "low_pass")


sizes = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))


@settings(max_examples=60, deadline=None)
@given(sizes, st.sampled_from(KINDS), st.floats(0.1, 30), st.integers(0, 2**31))
def test_linear_self_adjoint_and_contracting(shape, kind, cutoff, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    fx, fy = (ops.low_pass(v, cutoff, kind=kind) for v in (x, y))
    assert_close(ops.low_pass(2 * x - 3 * y, cutoff, kind=kind), 2 * fx - 3 * fy, "float64")
    assert_close((fx * y).sum(), (x * fy).sum(), "float64")
    assert_close(fx.mean((-2, -1)), x.mean((-2, -1)), "float64")
    assert fx.norm() <= x.norm() * (1 + 1e-12)


@settings(max_examples=30, deadline=None)
@given(sizes, st.floats(0.1, 10), st.integers(0, 2**31))
def test_ideal_is_idempotent_and_commutes_with_shifts(shape, cutoff, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    once = ops.low_pass(x, cutoff, kind="ideal")
    assert_close(ops.low_pass(once, cutoff, kind="ideal"), once, "float64")
    rolled = ops.low_pass(x.roll((1, 2), (-2, -1)), cutoff, kind="ideal")
    assert_close(rolled, once.roll((1, 2), (-2, -1)), "float64")


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: ops.low_pass(v, 1.5, kind=kind), x)
    assert torch.autograd.gradgradcheck(lambda v: ops.low_pass(v, 1.5, kind=kind), x)


def test_backward_is_the_filter_and_saves_nothing():
    x = torch.randn(2, 8, 9, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = ops.low_pass(x, 2.0)
    grad = torch.randn_like(x)
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], ops.low_pass(grad, 2.0))
    assert not saved


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (3, 0)])
def test_empty(shape):
    x = torch.empty(shape, requires_grad=True)
    y = ops.low_pass(x, 3.0)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


@pytest.mark.parametrize(
    "strided",
    [
        torch.randn(2, 3, 8, 10).to(memory_format=torch.channels_last),
        torch.randn(2, 3, 10, 8).transpose(-1, -2),
        torch.randn(2, 3, 16, 10)[:, :, ::2],
        torch.randn(1, 1, 8, 10).expand(2, 3, 8, 10),
    ],
    ids=["channels_last", "transposed", "sliced", "expanded"],
)
def test_strides(strided):
    before = strided.clone()
    assert torch.equal(ops.low_pass(strided, 2.0), ops.low_pass(strided.contiguous(), 2.0))
    assert torch.equal(strided, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype):
    x = torch.randn(2, 3, 30, 31).to(dtype)
    y = ops.low_pass(x, 4.0)
    assert y.dtype == dtype
    assert torch.equal(y, ops.low_pass(x.float(), 4.0).to(dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_stays_in_its_plane(value):
    x = torch.randn(2, 3, 8, 9)
    x[1, 2, 3, 4] = value
    finite = ops.low_pass(x, 2.0).isfinite()
    assert not finite[1, 2].any()
    finite[1, 2] = True
    assert finite.all()


def test_mask_is_built_once_and_the_cache_is_bounded(monkeypatch):
    built = []
    build = _filter_mask.build_mask
    monkeypatch.setattr(_filter_mask, "build_mask", lambda *a: built.append(a) or build(*a))
    _filter_mask._cache.clear()
    x = torch.randn(1, 1, 6, 6, requires_grad=True)
    for _ in range(3):
        ops.low_pass(x, 2.0).sum().backward()
    assert len(built) == 1
    ops.low_pass(x, 2.0, kind="ideal")
    ops.low_pass(x.double(), 2.0)
    ops.low_pass(x[..., :5], 2.0)
    assert len(built) == 4
    for i in range(100):
        ops.low_pass(x, 3.0 + i)
    assert len(_filter_mask._cache) == _filter_mask._CACHE_SIZE


def test_mask_from_inference_mode_serves_training():
    _filter_mask._cache.clear()
    with torch.inference_mode():
        ops.low_pass(torch.randn(1, 7, 7), 2.25)
    x = torch.randn(1, 7, 7, requires_grad=True)
    ops.low_pass(x, 2.25).sum().backward()
    assert_close(x.grad, torch.ones(1, 7, 7), "low_pass")


@pytest.mark.compile
def test_compiles_for_any_size():
    compiled = torch.compile(
        lambda x: ops.low_pass(x, 3.0), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for size in ((6, 6), (9, 12), (15, 7)):
        x = torch.randn(2, *size, requires_grad=True)
        grad = torch.randn_like(x)
        y = compiled(x)
        assert torch.equal(y, ops.low_pass(x, 3.0))
        assert torch.equal(torch.autograd.grad(y, x, grad)[0], ops.low_pass(grad, 3.0))


def test_registration():
    image = torch.randn(2, 3, 5, 6)
    channels_last = image.to(memory_format=torch.channels_last)
    for x in (image[0], image.requires_grad_(), channels_last, channels_last.bfloat16()):
        torch.library.opcheck(
            torch.ops.synq_fast_reference.low_pass.default, (x, 2.0, "gaussian", 2)
        )


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (([1.0], 2), {}, TypeError, "x must be a torch.Tensor, got list"),
        ((torch.ones(2, 2).int(), 2), {}, TypeError, r"x must be float16.*got torch.int32"),
        ((torch.ones(4), 2), {}, ValueError, r"x must have shape \(..., H, W\), got \(4,\)"),
        ((torch.ones(2, 2), 0), {}, ValueError, "cutoff must be above 0, got 0"),
        ((torch.ones(2, 2), -1.0), {}, ValueError, "cutoff must be above 0, got -1"),
        ((torch.ones(2, 2), float("nan")), {}, ValueError, "cutoff must be finite"),
        ((torch.ones(2, 2), "2"), {}, TypeError, "cutoff must be a number, got '2'"),
        ((torch.ones(2, 2), True), {}, TypeError, "cutoff must be a number, got True"),
        ((torch.ones(2, 2), 2), {"kind": "box"}, ValueError, "kind must be one of gaussian, butt"),
        ((torch.ones(2, 2), 2), {"order": 0}, ValueError, "order must be at least 1, got 0"),
        ((torch.ones(2, 2), 2), {"order": 1.5}, TypeError, "order must be an int, got 1.5"),
    ],
)
def test_bad_arguments(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        ops.low_pass(*arguments, **keywords)


def test_the_bound_can_fail():
    x = torch.randn(2, 3, 32, 32)
    off_centre = full_spectrum(x, 8.0) - full_spectrum(x, 8.001)
    assert abs(off_centre).max() > TOLERANCES["low_pass"].atol
