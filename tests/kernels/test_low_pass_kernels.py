"""The Triton low-pass kernel, run by Triton's interpreter, against float64."""

import pytest
import torch

from synq_fast import ops, reference
from tests.golden_cases import golden_cases
from tests.kernel_cases import DTYPES
from tests.tolerances import assert_close

# NumPy, which the interpreter runs on, tells when NaN appear, as they should.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

SHAPES = {
    (1, 1): "one value",
    (3, 2, 1): "lines of several images in a program",
    (2, 5, 7): "odd",
    (2, 3, 32, 32): "CIFAR",
    (1, 70, 65): "more than one block of rows, depth and lines; all with a rest",
}


@pytest.fixture(scope="module")
def kernels():
    from synq_fast import kernels

    return kernels


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference(kernels, shape) -> None:
    x = torch.randn(shape)
    for cutoff in (0.3 * shape[-1], 20.0):
        y = kernels.low_pass(x, cutoff, "gaussian", 2, "matrix")
        assert_close(y, reference.low_pass(x.double(), cutoff), "low_pass")


@pytest.mark.parametrize("kind", ["butterworth", "ideal"])
def test_other_kinds(kernels, kind) -> None:
    x = torch.randn(2, 3, 6, 7)
    expected = reference.low_pass(x.double(), 2.0, kind=kind, order=3)
    assert_close(kernels.low_pass(x, 2.0, kind, 3, "auto"), expected, "low_pass")
    with pytest.raises(ValueError, match="method matrix is for the kind gaussian"):
        kernels.low_pass(x, 2.0, kind, 3, "matrix")


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_types_round_once(kernels, dtype) -> None:
    x = torch.randn(2, 3, 9, 8).to(dtype)
    y = kernels.low_pass(x, 2.0, "gaussian", 2, "auto")
    assert y.dtype == dtype
    assert torch.equal(y, kernels.low_pass(x.float(), 2.0, "gaussian", 2, "auto").to(dtype))


@pytest.mark.parametrize("kind", ["gaussian", "ideal"])
def test_layouts(kernels, kind) -> None:
    x = torch.randn(2, 3, 9, 8)
    expected = kernels.low_pass(x, 2.0, kind, 2, "auto")
    channels_last = x.to(memory_format=torch.channels_last)
    y = kernels.low_pass(channels_last, 2.0, kind, 2, "auto")
    assert y.stride() == channels_last.stride()
    assert_close(y, expected, "low_pass")
    y = kernels.low_pass(x.transpose(-1, -2), 2.0, kind, 2, "auto")
    assert y.is_contiguous()
    assert_close(y, expected.transpose(-1, -2), "low_pass")


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (3, 0)], ids=str)
def test_empty(kernels, shape) -> None:
    assert kernels.low_pass(torch.empty(shape), 2.0, "gaussian", 2, "auto").shape == shape


def test_not_finite_stays_in_its_plane(kernels) -> None:
    x = torch.randn(3, 5, 6)
    x[1, 2, 3] = float("nan")
    finite = kernels.low_pass(x, 2.0, "gaussian", 2, "auto").isfinite()
    assert not finite[1].any()
    assert finite[0].all() and finite[2].all()


def test_golden(kernels, golden) -> None:
    cases = [case for _, case in golden_cases(golden("low_pass")) if case["x"].shape[-1] < 64]
    assert cases
    for case in cases:
        x, y = case["x"][:1], case["y"][:1]
        assert_close(kernels.low_pass(x, case["d0"], "gaussian", 2, "auto"), y, "low_pass")


def test_backend_and_gradient() -> None:
    x = torch.randn(2, 6, 7, requires_grad=True)
    with ops.backend("triton"):
        y = ops.low_pass(x, 2.0)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    assert_close(y.detach(), reference.low_pass(x.detach(), 2.0), "low_pass")
    assert_close(x.grad, reference.low_pass(gradient, 2.0), "low_pass")
    torch.library.opcheck(torch.ops.synq_fast.low_pass.triton, (x, 2.0, "gaussian", 2))


def test_matrices_are_built_once(kernels) -> None:
    from synq_fast.kernels.low_pass import _stored_matrix

    _stored_matrix.cache_clear()
    for _ in range(3):
        kernels.low_pass(torch.randn(1, 6, 7), 2.0, "gaussian", 2, "auto")
    assert _stored_matrix.cache_info().misses == 2
    assert _stored_matrix.cache_info().maxsize is not None
