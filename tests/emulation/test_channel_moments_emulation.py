"""The CUDA kernels of the channels' moments, run on the CPU thread by thread."""

import ctypes

import pytest
import torch

from synq_fast import reference
from tests.emulation.build import build, shifted
from tests.kernel_cases import DTYPES


class Params(ctypes.Structure):
    """ChannelMomentsParams of csrc/channel_moments.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("samples", "channels", "positions")),
        ("innermost", ctypes.c_bool),
        *((name, ctypes.c_void_p) for name in ("x", "mean", "variance", "workspace")),
        *((name, ctypes.c_void_p) for name in ("of_mean", "of_variance", "y")),
        ("dtype", ctypes.c_int32),
    ]


# (samples, channels, positions), with the reason.
SHAPES = {
    (1, 1, 1): "one element",
    (2, 3, 7): "short and odd",
    (5, 8, 49): "one warp a channel",
    (2, 64, 16): "aligned rows and columns",
    (1, 2, 9001): "parts of long runs, odd",
    (1, 2, 12000): "the same, aligned",
    (3, 70, 40): "more columns than a block has",
    (1, 33, 700): "parts of columns",
    (700, 3, 2): "more channels than blocks",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    library = build("channel_moments", tmp_path_factory)
    library.moments_workspace.restype = ctypes.c_int64
    return library


def check(library, shape, innermost: bool, dtype: torch.dtype, shift: int, mean: float = 0) -> None:
    samples, channels, positions = shape
    x = (torch.randn(shape) + mean).to(dtype)
    memory = shifted(x.transpose(1, 2).contiguous() if innermost else x, shift)
    results = torch.full((2, samples, channels), float("nan"))
    params = Params(
        x=memory.data_ptr(), mean=results[0].data_ptr(), variance=results[1].data_ptr(),
        samples=samples, channels=channels, positions=positions,
        dtype=DTYPES.index(dtype), innermost=innermost,
    )  # fmt: skip
    size = library.moments_workspace(ctypes.byref(params))
    scratch = torch.full((size + 1,), float("nan"), dtype=torch.float64)
    params.workspace = scratch.data_ptr()
    assert library.moments(ctypes.byref(params)) == 0
    assert scratch[size].isnan() and not scratch[:size].isnan().any()
    leaf = x.double().requires_grad_()
    moments = reference.channel_moments(leaf)
    for mine, theirs in zip(results, moments, strict=True):
        torch.testing.assert_close(mine.double(), theirs.detach(), rtol=3e-6, atol=2e-6)

    gradients = torch.randn(2, samples, channels).unbind()
    torch.autograd.backward(moments, [value.double() for value in gradients], retain_graph=True)
    both = leaf.grad.clone()
    leaf.grad = None
    moments[1].backward(gradients[1].double())
    for of_mean, expected in ((gradients[0].data_ptr(), both), (None, leaf.grad)):
        y = shifted(torch.zeros_like(memory), shift)
        params.y, params.of_mean, params.of_variance = (
            y.data_ptr(),
            of_mean,
            gradients[1].data_ptr(),
        )
        assert library.moments_backward(ctypes.byref(params)) == 0
        actual = y.transpose(1, 2) if innermost else y
        unit = torch.finfo(dtype).eps
        # The mean is rounded to float32.
        atol = 1e-6 + 2 * mean * torch.finfo(torch.float32).eps
        torch.testing.assert_close(actual.double(), expected, rtol=2 * unit, atol=atol)


@pytest.mark.parametrize("multiprocessors", [1, 3])
@pytest.mark.parametrize("innermost", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(library, dtype: torch.dtype, innermost: bool, multiprocessors: int) -> None:
    library.set_multiprocessors(multiprocessors)
    for shape in SHAPES:
        check(library, shape, innermost, dtype, 0)


@pytest.mark.parametrize("innermost", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unaligned_memory(library, dtype: torch.dtype, innermost: bool) -> None:
    library.set_multiprocessors(1)
    for shape in ((2, 64, 16), (1, 2, 12000)):
        check(library, shape, innermost, dtype, 1)


@pytest.mark.parametrize("innermost", [False, True])
def test_a_large_mean_costs_no_accuracy(library, innermost: bool) -> None:
    library.set_multiprocessors(3)
    for shape in SHAPES:
        check(library, shape, innermost, torch.float32, 0, mean=1e4)


@pytest.mark.parametrize("innermost", [False, True])
def test_infinities(library, innermost: bool) -> None:
    library.set_multiprocessors(3)
    x = torch.randn(1, 4, 9001)
    x[0, 0, 0] = x[0, 1, 5000] = float("inf")
    x[0, 2, 7] = float("nan")
    memory = x.transpose(1, 2).contiguous() if innermost else x
    mean, variance = torch.zeros(2, 1, 4).unbind()
    params = Params(
        x=memory.data_ptr(), mean=mean.data_ptr(), variance=variance.data_ptr(),
        samples=1, channels=4, positions=9001, innermost=innermost,
    )  # fmt: skip
    size = library.moments_workspace(ctypes.byref(params))
    scratch = torch.zeros(max(size, 1), dtype=torch.float64)
    params.workspace = scratch.data_ptr()
    assert library.moments(ctypes.byref(params)) == 0
    assert mean[0, :2].isposinf().all() and mean[0, 2].isnan() and mean[0, 3].isfinite()
    assert variance[0, :3].isnan().all() and variance[0, 3].isfinite()
