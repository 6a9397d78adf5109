"""Low-pass filters: golden values, a full-spectrum oracle, and the properties of a filter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synq_fast import ops
from tests.golden_cases import golden_cases
from tests.ops.backends import BACKENDS, require
from tests.tolerances import TOLERANCES, assert_close

KINDS = ("gaussian", "butterworth", "ideal")
SIZES = (
    (1, 1),  # the zero frequency alone
    (2, 1),
    (1, 6),
    (7, 5),  # odd, no Nyquist frequency
    (8, 8),  # even, one unpaired frequency per axis
    (6, 44),  # halves of 44: 22, which is even, and 11
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


@pytest.fixture
def chosen(backend, device):
    """Chooses the backend for the time of a test and returns the device that it is tested on."""
    require(backend)
    with ops.backend(backend):
        yield device


on_every_backend = pytest.mark.parametrize(("backend", "device"), BACKENDS)


@on_every_backend
def test_golden(golden, chosen):
    for _, case in golden_cases(golden("low_pass")):
        assert_close(ops.low_pass(case["x"].to(chosen), case["d0"]).cpu(), case["y"], "low_pass")


@on_every_backend
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("cutoff", [0.5, 3.0, 20.0])
def test_against_full_spectrum(chosen, size, kind, cutoff):
    x = torch.randn(2, 3, *size)
    expected = full_spectrum(x, cutoff, kind)
    actual = ops.low_pass(x.to(chosen), cutoff, kind=kind)
    assert_close(actual.cpu(), expected, "low_pass")
    if chosen == "cpu":
        assert_close(ops.low_pass(x.double(), cutoff, kind=kind), expected, "low_pass_float64")


@on_every_backend
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "cutoff"),
    [
        ((3, 299, 299), 80.0),  # odd, with large prime factors
        ((1, 512, 384), 100.0),  # one image, shared by the threads
        ((700, 8, 6), 2.0),  # many small ones
        ((2, 5, 1600), 30.0),  # a side that is left to transforms
    ],
    ids=str,
)
def test_large_and_many(chosen, kind, shape, cutoff):
    x = torch.randn(shape)
    actual = ops.low_pass(x.to(chosen), cutoff, kind=kind)
    assert_close(actual.cpu(), full_spectrum(x, cutoff, kind), "low_pass")


@on_every_backend
@pytest.mark.parametrize("order", [1, 2, 5])
def test_butterworth_order(chosen, order):
    x = torch.randn(2, 9, 12)
    actual = ops.low_pass(x.to(chosen), 2.5, kind="butterworth", order=order)
    assert_close(actual.cpu(), full_spectrum(x, 2.5, "butterworth", order), "low_pass")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["matrix", "spectrum"])
def test_both_methods(kind, method):
    for size in ((7, 5), (32, 32), (33, 47), (96, 160)):
        x = torch.randn(4, *size)
        y = torch.ops.synq_fast.low_pass(x, 5.0, kind, 3, method)
        assert_close(y, full_spectrum(x, 5.0, kind, 3), "low_pass")


@on_every_backend
@pytest.mark.parametrize("height", [8, 9])
def test_gain_at_the_cutoff(chosen, height):
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(height) / height)[:, None].expand(-1, 4)
    wave = wave.to(chosen)
    assert_close(ops.low_pass(wave, 3.0), wave * float(np.exp(-0.5)), "low_pass")
    assert_close(ops.low_pass(wave, 3.0, kind="butterworth"), wave / 2, "low_pass")
    assert_close(ops.low_pass(wave, 3.0, kind="ideal"), wave, "low_pass")
    assert_close(ops.low_pass(wave, 2.99, kind="ideal"), torch.zeros_like(wave), "low_pass")


sizes = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 70)),
    st.sampled_from(KINDS),
    st.floats(0.1, 60),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
    st.integers(0, 2**31),
)
def test_any_shape_and_setting(shape, kind, cutoff, memory_format, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    images = x.unsqueeze(0).contiguous(memory_format=memory_format)
    assert_close(
        ops.low_pass(images, cutoff, kind=kind)[0], full_spectrum(x, cutoff, kind), "low_pass"
    )


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


@on_every_backend
@pytest.mark.parametrize("kind", KINDS)
def test_backward_is_the_filter_and_saves_nothing(chosen, kind):
    x = torch.randn(2, 8, 9, device=chosen, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = ops.low_pass(x, 2.0, kind=kind, order=3)
    grad = torch.randn_like(x).requires_grad_()
    (result,) = torch.autograd.grad(y, x, grad, create_graph=True)
    assert torch.equal(result, ops.low_pass(grad, 2.0, kind=kind, order=3))
    assert not saved
    (second,) = torch.autograd.grad(result, grad, x.detach())
    assert torch.equal(second, y)


@on_every_backend
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (3, 0)])
def test_empty(chosen, shape):
    x = torch.empty(shape, device=chosen, requires_grad=True)
    y = ops.low_pass(x, 3.0)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


IMAGES = torch.randn(2, 3, 8, 10)
LAYOUTS = {
    "transposed": IMAGES.transpose(-1, -2),
    "sliced": torch.randn(2, 3, 16, 10)[:, :, ::2],
    "expanded": torch.randn(1, 1, 8, 10).expand(2, 3, 8, 10),
    "offset": torch.randn(481)[1:].view(2, 3, 8, 10),
    "channels_last": IMAGES.to(memory_format=torch.channels_last),
    "many channels_last": torch.randn(2, 40, 5, 6).to(memory_format=torch.channels_last),
    "one pixel wide": torch.randn(3, 5, 7, 1).to(memory_format=torch.channels_last),
}


@on_every_backend
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(chosen, kind, layout):
    strided = LAYOUTS[layout].to(chosen)
    before = strided.clone()
    y = ops.low_pass(strided, 2.0, kind=kind)
    assert_close(y, ops.low_pass(strided.contiguous(), 2.0, kind=kind), "low_pass")
    assert torch.equal(strided, before)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_is_kept(kind):
    require("cpu")
    x = LAYOUTS["channels_last"].clone().requires_grad_()
    y = ops.low_pass(x, 2.0, kind=kind)
    assert y.stride() == x.stride()
    y.sum().backward()
    assert x.grad.stride() == x.stride()


@on_every_backend
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(chosen, kind, dtype):
    for size in ((30, 31), (32, 32), (3, 5)):
        x = torch.randn(2, 3, *size).to(dtype).to(chosen)
        y = ops.low_pass(x, 4.0, kind=kind)
        assert y.dtype == dtype
        assert torch.equal(y, ops.low_pass(x.float(), 4.0, kind=kind).to(dtype))


@on_every_backend
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_stays_in_its_plane(chosen, kind, value):
    for size in ((8, 9), (32, 40)):
        x = torch.randn(2, 3, *size, device=chosen)
        x[1, 2, 3, 4] = value
        finite = ops.low_pass(x, 2.0, kind=kind).isfinite()
        assert not finite[1, 2].any()
        finite[1, 2] = True
        assert finite.all()


def test_the_threads_do_not_change_the_result():
    threads = torch.get_num_threads()
    x = torch.randn(5, 120, 130)
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results += [[ops.low_pass(y, 30.0, kind=kind) for y in (x, x[:1])] for kind in KINDS]
    finally:
        torch.set_num_threads(threads)
    for (images, image), (first, first_image) in zip(results, results[:3] * 3, strict=True):
        assert torch.equal(images, first)
        assert torch.equal(image, first_image)
        assert torch.equal(images[:1], image)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (([1.0], 2), {}, TypeError, "x must be a torch.Tensor, got list"),
        ((torch.ones(2, 2).int(), 2), {}, TypeError, r"x must be float16.*got torch.int32"),
        ((torch.ones(4), 2), {}, ValueError, r"x must have shape \(..., H, W\), got \(4,\)"),
        ((torch.ones(2, 2), 0), {}, ValueError, "cutoff must be above 0, got 0"),
        ((torch.ones(2, 2), -1.0), {}, ValueError, "cutoff must be above 0, got -1"),
        ((torch.ones(2, 2), 1e-200), {}, ValueError, "cutoff must be at least 1e-100, got 1e-200"),
        ((torch.ones(2, 2), 1e200), {}, ValueError, "cutoff must be at most 1e.100, got 1e.200"),
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
