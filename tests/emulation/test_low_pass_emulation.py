"""The CUDA C++ low-pass kernel, compiled for the CPU and run thread by thread.

Tensor-core instructions are emulated by the operand layout of the PTX manual, on its own tested
against a matrix product. tests/compile looks at the code that a GPU would run; tests marked `cuda`
run it.
"""

import ctypes

import pytest
import torch

from synq_fast import reference
from tests.emulation.build import build, shifted
from tests.golden_cases import golden_cases
from tests.kernel_cases import DTYPES
from tests.tolerances import TOLERANCES, assert_close


class Axis(ctypes.Structure):
    """LowPassAxis of csrc/low_pass.h."""

    _fields_ = [("n", ctypes.c_int64), ("table", ctypes.c_void_p)]


class Params(ctypes.Structure):
    """LowPassParams of csrc/low_pass.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "y", "middle")),
        *((name, ctypes.c_int64) for name in ("images", "channels")),
        ("height", Axis),
        ("width", Axis),
        ("tf32", ctypes.c_bool),
        ("dtype", ctypes.c_int32),
    ]


def table(n: int, cutoff: float) -> torch.Tensor:
    """The taps as csrc/low_pass.h wants them."""
    frequencies = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    taps = torch.fft.ifft(torch.exp(-(frequencies**2) / (2 * cutoff**2))).real
    taps = torch.cat([taps, taps])
    if n % 2:
        return (taps[: n + 1] / 2).float()
    h = n // 2
    ends = taps[: h + 1], taps[h : n + 1]
    return torch.cat([(ends[0] + ends[1]) / 4, (ends[0] - ends[1]) / 4]).float()


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    return build("low_pass", tmp_path_factory)


def run(library, x, cutoff, *, tf32=False, shift_x=0, shift_y=0):
    """Filters a contiguous or channels_last tensor as the op does."""
    channels_last = x.ndim == 4 and not x.is_contiguous()
    channels = x.shape[1] if channels_last else 1
    memory = shifted(x.permute(0, 2, 3, 1) if channels_last else x, shift_x)
    y = shifted(torch.zeros(memory.shape, dtype=x.dtype), shift_y)
    middle = y if x.dtype == torch.float32 else torch.full(memory.shape, float("nan"))
    tables = [table(n, cutoff) for n in x.shape[-2:]]
    axes = [Axis(n, t.data_ptr()) for n, t in zip(x.shape[-2:], tables, strict=True)]
    params = Params(
        x=memory.data_ptr(), y=y.data_ptr(), middle=middle.data_ptr(),
        images=x.numel() // (channels * x.shape[-1] * x.shape[-2]), channels=channels,
        height=axes[0], width=axes[1], tf32=tf32, dtype=DTYPES.index(x.dtype),
    )  # fmt: skip
    assert library.low_pass(ctypes.byref(params)) == 0
    return y.permute(0, 3, 1, 2) if channels_last else y


SHAPES = {
    (1, 1, 1): "one value",
    (3, 2, 1): "no odd part",
    (2, 5, 7): "odd sides, a tile that is not full",
    (1, 12, 20): "even sides whose halves are even",
    (5, 6, 10): "even sides whose halves are odd; lines of several images in a tile",
    (3, 33, 16): "more than one block of rows",
    (1, 3, 248): "the longest side with 32 lines in a tile, three jobs in a warp at most",
    (1, 256, 2): "16 lines in a tile",
    (1, 4, 301): "odd, 16 lines in a tile",
    (1, 2, 448): "the longest side",
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference(library, shape) -> None:
    x = torch.randn(shape)
    for cutoff in (0.3 * max(shape), 2.0):
        expected = reference.low_pass(x.double(), cutoff)
        assert_close(run(library, x, cutoff), expected, "low_pass")


def test_golden(library, golden) -> None:
    cases = [case for _, case in golden_cases(golden("low_pass")) if case["x"].shape[-1] < 40]
    assert cases
    for case in cases:
        assert_close(
            run(library, case["x"][:1].contiguous(), case["d0"]), case["y"][:1], "low_pass"
        )


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_channels_last(library, channels) -> None:
    x = torch.randn(2, channels, 10, 9).to(memory_format=torch.channels_last)
    assert_close(run(library, x, 2.5), reference.low_pass(x.double(), 2.5), "low_pass")


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_types_round_once(library, dtype) -> None:
    for shape in ((2, 3, 8, 12), (2, 5, 7)):
        x = torch.randn(shape).to(dtype)
        assert torch.equal(run(library, x, 3.0), run(library, x.float(), 3.0).to(dtype))


@pytest.mark.parametrize(("shift_x", "shift_y"), [(1, 0), (0, 3), (2, 2)], ids=str)
def test_unaligned_memory(library, shift_x, shift_y) -> None:
    x = torch.randn(2, 8, 12)
    y = run(library, x, 3.0, shift_x=shift_x, shift_y=shift_y)
    assert torch.equal(y, run(library, x, 3.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_stays_in_its_plane(library, value) -> None:
    x = torch.randn(3, 6, 10)
    x[1, 3, 4] = value
    finite = run(library, x, 2.0).isfinite()
    assert not finite[1].any()
    assert finite[0].all() and finite[2].all()


def test_tf32_is_a_choice(library) -> None:
    x = torch.randn(4, 16, 16)
    expected = reference.low_pass(x.double(), 4.0)
    error = (run(library, x, 4.0, tf32=True).double() - expected).abs().max()
    assert TOLERANCES["low_pass"].atol < error < 5e-3
    assert_close(run(library, x, 4.0), expected, "low_pass")


def test_too_long_a_side_is_refused(library) -> None:
    with pytest.raises(AssertionError):
        run(library, torch.randn(1, 1, 449), 2.0)


def test_emulated_tensor_cores(library) -> None:
    a, b = torch.randint(-8, 9, (16, 8)).float(), torch.randint(-8, 9, (8, 8)).float()
    c = torch.full((16, 8), float("nan"))
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, b, c)]
    assert library.multiply(*pointers) == 0
    assert torch.equal(c, a @ b)
    parts = torch.zeros(2)
    for value in (1.0, 3.14159274, -1e-3, 1 + 2**-11):
        library.split(ctypes.c_float(value), ctypes.c_void_p(parts.data_ptr()))
        assert abs(parts.double().sum().item() - torch.tensor(value).item()) <= abs(value) * 2**-21
        assert (parts.view(torch.int32) & 0x1FFF == 0).all()
