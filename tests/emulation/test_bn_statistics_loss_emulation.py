"""The CUDA C++ kernels of the BN-statistics losses, run thread by thread on the CPU."""

import ctypes

import pytest
import torch

from tests.emulation.build import build, shifted
from tests.statistics_cases import DTYPES, SHAPES, check_gradient, check_losses, exact, running


class Params(ctypes.Structure):
    """BnStatisticsParams of csrc/bn_statistics_loss.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("outer", "channels", "inner")),
        *((name, ctypes.c_void_p) for name in ("x", "running_mean", "running_var", "statistics")),
        ("row_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("mean_loss", "var_loss", "weighted")),
        ("weight", ctypes.c_double),
        ("workspace", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
    ]


class GradientParams(ctypes.Structure):
    """BnGradientParams of csrc/bn_statistics_loss.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("outer", "channels", "inner")),
        *((name, ctypes.c_void_p) for name in ("x", "result", "statistics")),
        ("row_stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("mean_scale", "var_scale")),
        ("weight", ctypes.c_float),
        ("dtype", ctypes.c_int32),
    ]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    library = build("bn_statistics_loss", tmp_path_factory)
    library.workspace.restype = ctypes.c_int64
    library.set_multiprocessors(1)
    return library


def run(library, x, shift=0, scales=(1.0, 3.0), weight=0.5):
    """Losses, the weighted loss, and the gradient of x for the scales of the losses."""
    channels = x.shape[1]
    order = sorted(range(x.ndim), key=lambda dim: -x.stride(dim))
    memory = shifted(x.permute(order).contiguous(), shift)
    inner = torch.Size(memory.shape[order.index(1) + 1 :]).numel()
    sizes = {"outer": x.numel() // channels // inner, "channels": channels, "inner": inner}
    mean, var = running(channels)
    # A row longer than this layer's channels, as among the layers of a network.
    statistics = torch.full((3, channels + 2), float("nan"), dtype=torch.float64)
    losses, weighted = torch.full((2,), float("nan")), torch.zeros(2, dtype=torch.float64)
    params = Params(
        x=memory.data_ptr(), running_mean=mean.data_ptr(), running_var=var.data_ptr(),
        statistics=statistics.data_ptr(), row_stride=channels + 2,
        mean_loss=losses[0].data_ptr(), var_loss=losses[1].data_ptr(),
        weighted=weighted[1].data_ptr(), weight=weight, dtype=DTYPES.index(x.dtype), **sizes,
    )  # fmt: skip
    size = library.workspace(ctypes.byref(params))
    workspace = torch.full((size + 1,), float("nan"))
    params.workspace = workspace.data_ptr()
    assert library.forward(ctypes.byref(params)) == 0
    assert workspace[size].isnan(), "wrote beyond the workspace"
    assert statistics[:, channels:].isnan().all(), "wrote beyond the layer's statistics"
    result = shifted(torch.full_like(memory, float("nan")), shift)
    kept = [None if scale is None else torch.tensor(scale) for scale in scales]
    backward = GradientParams(
        x=memory.data_ptr(), result=result.data_ptr(), statistics=statistics.data_ptr(),
        row_stride=channels + 2, weight=weight, dtype=DTYPES.index(x.dtype), **sizes,
    )  # fmt: skip
    for name, scale in zip(("mean_scale", "var_scale"), kept, strict=True):
        if scale is not None:
            setattr(backward, name, scale.data_ptr())
    assert library.backward(ctypes.byref(backward)) == 0
    loss = torch.full((), float("nan"))
    total = library.total(
        ctypes.c_void_p(weighted.data_ptr()), ctypes.c_int64(2), ctypes.c_void_p(loss.data_ptr())
    )
    assert total == 0
    inverse = sorted(range(x.ndim), key=order.__getitem__)
    return losses, loss, result.permute(inverse)


def check(library, x, shift=0):
    mean, var = running(x.shape[1])
    _, _, of_mean, of_var = exact(x, mean, var)
    for scales in ((1.0, 3.0), (2.0, None), (None, 1.0)):
        losses, loss, gradient = run(library, x, shift, scales)
        check_losses(losses.unbind(), x, mean, var)
        assert loss.item() == pytest.approx(0.5 * losses.double().sum().item(), rel=1e-6)
        expected = 0.5 * ((scales[0] or 0) * of_mean + (scales[1] or 0) * of_var)
        check_gradient(gradient, expected, x.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(library, shape, dtype) -> None:
    x = (torch.randn(shape) * 2 + 0.5).to(dtype)
    check(library, x)
    if len(shape) == 4:
        check(library, x.to(memory_format=torch.channels_last))
        check(library, x, shift=1)


@pytest.mark.parametrize("multiprocessors", [1, 5])
def test_grids_of_any_size(library, multiprocessors) -> None:
    library.set_multiprocessors(multiprocessors)
    check(library, torch.randn(40, 8, 20, 20))
    check(library, torch.randn(20, 24, 16, 16).to(memory_format=torch.channels_last))
    library.set_multiprocessors(1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_device_changes_no_bit(library, memory_format) -> None:
    x = torch.randn(20, 24, 16, 16).to(memory_format=memory_format)
    results = []
    for multiprocessors in (1, 2, 7):
        library.set_multiprocessors(multiprocessors)
        losses, _, gradient = run(library, x, scales=(1.0, 2.0))
        results.append((*losses, gradient))
    library.set_multiprocessors(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_variance_does_not_cancel(library) -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = (torch.randn(8, 4, 16, 16) + 1e4).to(memory_format=memory_format)
        losses, _, gradient = run(library, x, scales=(None, 2.0))
        mean, var = running(4)
        _, expected, _, of_var = exact(x, mean, var)
        assert losses[1].item() == pytest.approx(expected.item(), rel=1e-3)
        assert (gradient - of_var).abs().max() < 2e-3 * of_var.abs().max()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(library, value) -> None:
    for shape in ((3, 5), (2, 3, 5, 8)):
        x = torch.randn(shape)
        x[1, 2] = value
        losses, *_ = run(library, x)
        assert not losses[0].isfinite()
        assert losses[1].isnan()
