"""Low-pass filters: golden values, a full-spectrum oracle, and the properties of a filter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synq_fast import ops
from tests.ops.backends import BACKENDS, require
from tests.tolerances import assert_close

KINDS = ("gaussian", "butterworth", "ideal")


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


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_alone_is_filtered_as_among_others(kind):
    x = torch.randn(5, 120, 130)
    together, alone = (ops.low_pass(y, 30.0, kind=kind) for y in (x, x[:1]))
    assert torch.equal(together[:1], alone)
