"""The CUDA C++ kernels, compiled for the CPU and run thread by thread, equal the reference.

This shows what needs no GPU to be shown: indexing, unaligned heads and tails, grids of any size,
barriers, reductions and arithmetic. tests/compile looks at the code that a GPU would run; tests
marked `cuda` run it.
"""

import ctypes

import pytest
import torch

from synq_fast import reference
from tests.emulation.build import build, shifted
from tests.golden_cases import golden_cases
from tests.kernel_cases import (
    DTYPES,
    SPECIAL_RANGES,
    assert_same_bits,
    cases,
    special_values,
)


class Params(ctypes.Structure):
    """FakeQuantizeParams of csrc/fake_quantize.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("outer", "channels", "inner")),
        *((name, ctypes.c_void_p) for name in ("x", "gradient", "y")),
        *((name, ctypes.c_void_p) for name in ("range_min", "range_max")),
        *((name, ctypes.c_void_p) for name in ("out_min", "out_max", "workspace")),
        ("bits", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("symmetric", ctypes.c_bool),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    library = build("fake_quantize", tmp_path_factory)
    library.dynamic_workspace.restype = ctypes.c_int64
    return library


@pytest.fixture(params=[1, 3], ids=["1 multiprocessor", "3 multiprocessors"])
def kernels(request, library) -> "Kernels":
    library.set_multiprocessors(request.param)
    return Kernels(library)


class Kernels:
    """Calls the launchers as the ops do, on memory in (outer, channels, inner) order."""

    def __init__(self, library: ctypes.CDLL, shift_x: int = 0, shift_y: int = 0):
        self.library = library
        self.shift_x = shift_x
        self.shift_y = shift_y

    def call(
        self, name, x, bits, axis, low=None, high=None, gradient=None, codes=False, symmetric=False
    ):
        order = sorted(range(x.ndim), key=lambda dim: -x.stride(dim))
        place = None if axis is None else order.index(axis % x.ndim)
        memory = shifted(x.permute(order).contiguous(), self.shift_x)
        sizes = list(memory.shape)
        outer, channels, inner = 1, 1, memory.numel()
        if place is not None:
            outer, channels = torch.Size(sizes[:place]).numel(), sizes[place]
            inner = torch.Size(sizes[place + 1 :]).numel()
        dtype = x.dtype if not codes else torch.int8 if bits <= 8 else torch.int16
        y = shifted(torch.zeros(memory.shape, dtype=dtype), self.shift_y)
        out = torch.full((2, channels), float("nan"))
        params = Params(
            x=memory.data_ptr(), y=y.data_ptr(), outer=outer, channels=channels, inner=inner,
            bits=bits, dtype=DTYPES.index(x.dtype), symmetric=symmetric,
            out_min=out[0].data_ptr(), out_max=out[1].data_ptr(),
        )  # fmt: skip
        kept = []
        if low is not None:
            kept = [bound.contiguous() for bound in (low, high)]
            params.range_min, params.range_max = (bound.data_ptr() for bound in kept)
        if gradient is not None:
            kept.append(shifted(gradient.permute(order).contiguous(), self.shift_x))
            params.gradient = kept[-1].data_ptr()
        if name == "dynamic":
            size = self.library.dynamic_workspace(ctypes.byref(params))
            workspace = torch.full((size + 1,), float("nan"))
            params.workspace = workspace.data_ptr()
        assert getattr(self.library, name)(ctypes.byref(params)) == 0
        if name == "dynamic":
            assert workspace[size].isnan(), f"{name} wrote beyond its workspace"
        inverse = sorted(range(x.ndim), key=order.__getitem__)
        shape = () if axis is None else (channels,)
        return y.permute(inverse), out[0].reshape(shape), out[1].reshape(shape)


def check_all(kernels: Kernels, x, bits, axis, low, high, name) -> None:
    y = kernels.call("forward", x, bits, axis, low, high)[0]
    assert_same_bits(y, reference.fake_quantize(x, low, high, bits, axis=axis), name)

    gradient = torch.randn(x.shape).to(x.dtype)
    leaf = x.detach().clone().requires_grad_()
    reference.fake_quantize(leaf, low, high, bits, axis=axis, ste="clip").backward(gradient)
    actual = kernels.call("backward", x, bits, axis, low, high, gradient)[0]
    assert_same_bits(actual, leaf.grad, f"{name}, backward")

    expected = reference.quantize_codes(x, low, high, bits, axis=axis)
    actual = kernels.call("codes", x, bits, axis, low, high, codes=True)
    for mine, theirs in zip(actual, expected, strict=True):
        assert_same_bits(mine, theirs, f"{name}, codes")

    for symmetric in (False, True) if x.numel() > 0 else ():
        expected = reference.fake_quantize_dynamic(x, bits, axis=axis, symmetric=symmetric)
        actual = kernels.call("dynamic", x, bits, axis, symmetric=symmetric)
        for mine, theirs in zip(actual, expected, strict=True):
            assert_same_bits(mine, theirs, f"{name}, dynamic, {symmetric}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cases(kernels: Kernels, dtype: torch.dtype) -> None:
    for case in cases(dtype):
        x = case.x.contiguous() if case.name in ("strided", "expanded") else case.x
        _, low, high = reference.fake_quantize_dynamic(x, case.bits, axis=case.axis)
        check_all(kernels, x, case.bits, case.axis, low * 0.7, high * 0.7, case.name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shift_x", "shift_y"), [(1, 1), (3, 3), (1, 0), (0, 1), (2, 3)], ids=str)
def test_unaligned_memory(library, dtype: torch.dtype, shift_x: int, shift_y: int) -> None:
    library.set_multiprocessors(1)
    kernels = Kernels(library, shift_x, shift_y)
    for shape, axis in (
        ((1,), None),
        ((5,), None),
        ((5000,), None),
        ((17000,), None),
        ((6, 64), 0),
        ((64, 6), 1),
    ):
        x = torch.randn(shape).to(dtype)
        channels = () if axis is None else (shape[axis],)
        low, high = torch.full(channels, -1.5), torch.full(channels, 1.25)
        check_all(kernels, x, 4, axis, low, high, f"{shape} shifted by {shift_x} and {shift_y}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SPECIAL_RANGES)
def test_special_values(kernels: Kernels, name: str, dtype: torch.dtype) -> None:
    low, high = (torch.tensor(bound) for bound in SPECIAL_RANGES[name])
    for bits in (2, 4, 8, 16):
        check_all(kernels, special_values(dtype), bits, None, low, high, name)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_dynamic_range_of_special_values(kernels: Kernels, value: float) -> None:
    for shape, axis in (
        ((5, 40), None),
        ((5, 40), 0),
        ((40, 5), 1),
        ((20000,), None),
        ((3, 11000), 0),
    ):
        x = torch.randn(shape)
        x[-1] = value
        expected = reference.fake_quantize_dynamic(x, 4, axis=axis)
        for mine, theirs in zip(kernels.call("dynamic", x, 4, axis), expected, strict=True):
            assert_same_bits(mine, theirs, f"{shape} axis {axis}")


def test_codes_of_an_empty_tensor_have_a_scale(kernels: Kernels) -> None:
    x = torch.empty(0)
    bounds = torch.tensor(-1.0), torch.tensor(1.0)
    codes, scale, zero = kernels.call("codes", x, 4, None, *bounds, codes=True)
    assert codes.numel() == 0
    assert (scale.item(), zero.item()) == (7.5, 0.0)


def test_golden_values(kernels: Kernels, golden) -> None:
    for name, case in golden_cases(golden("fake_quantize")):
        axis = 0 if case["kind"] == "per_channel" else None
        y = kernels.call("forward", case["x"], case["bits"], axis, case["min"], case["max"])[0]
        assert_same_bits(y, case["y"], name)
