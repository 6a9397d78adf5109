"""The Triton kernels, run by Triton's interpreter, against the reference: bit for bit."""

from collections.abc import Iterator

import pytest
import torch

from synq_fast import reference
from tests.golden_cases import golden_cases
from tests.kernel_cases import (
    DTYPES,
    SPECIAL_RANGES,
    Case,
    assert_same_bits,
    cases,
    interpretable,
    special_values,
)

# NumPy, which the interpreter runs on, tells when infinities appear, as they should.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.fixture(scope="module")
def kernels():
    from synq_fast import kernels

    return kernels


def interpretable_cases(dtype: torch.dtype) -> Iterator[Case]:
    return (case for case in cases(dtype) if interpretable(case.x.shape, dtype))


def narrowed_range(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a range that clips some of the input on both sides."""
    _, low, high = reference.fake_quantize_dynamic(case.x, case.bits, axis=case.axis)
    return low * 0.7, high * 0.7


def clipped_gradient(case: Case, low, high, gradient) -> torch.Tensor:
    x = case.x.detach().clone().requires_grad_()
    reference.fake_quantize(x, low, high, case.bits, axis=case.axis, ste="clip").backward(gradient)
    return x.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward(kernels, dtype: torch.dtype) -> None:
    for case in interpretable_cases(dtype):
        low, high = narrowed_range(case)
        y = kernels.fake_quantize(case.x, low, high, case.bits, case.axis, None)
        expected = reference.fake_quantize(case.x, low, high, case.bits, axis=case.axis)
        assert_same_bits(y, expected, case.name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clipped_gradient(kernels, dtype: torch.dtype) -> None:
    for case in interpretable_cases(dtype):
        low, high = narrowed_range(case)
        gradient = torch.randn(case.x.shape).to(dtype)
        actual = kernels.fake_quantize_backward(
            gradient, case.x, low, high, case.bits, case.axis, None
        )
        assert_same_bits(actual, clipped_gradient(case, low, high, gradient), case.name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dynamic(kernels, dtype: torch.dtype) -> None:
    for case in interpretable_cases(dtype):
        actual = kernels.fake_quantize_dynamic(case.x, case.bits, case.axis, None, False)
        expected = reference.fake_quantize_dynamic(case.x, case.bits, axis=case.axis)
        for part, mine, theirs in zip(("y", "min", "max"), actual, expected, strict=True):
            assert_same_bits(mine, theirs, f"{case.name}, {part}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes(kernels, dtype: torch.dtype) -> None:
    for case in interpretable_cases(dtype):
        low, high = narrowed_range(case)
        actual = kernels.quantize_codes(case.x, low, high, case.bits, case.axis, None)
        expected = reference.quantize_codes(case.x, low, high, case.bits, axis=case.axis)
        for part, mine, theirs in zip(("codes", "scale", "zero"), actual, expected, strict=True):
            assert_same_bits(mine, theirs, f"{case.name}, {part}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SPECIAL_RANGES)
def test_special_values(kernels, name: str, dtype: torch.dtype) -> None:
    x = special_values(dtype)
    low, high = (torch.tensor(bound) for bound in SPECIAL_RANGES[name])
    for bits in (2, 4, 8):
        y = kernels.fake_quantize(x, low, high, bits, None, None)
        assert_same_bits(y, reference.fake_quantize(x, low, high, bits), name)
        codes, scale, zero = kernels.quantize_codes(x, low, high, bits, None, None)
        expected = reference.quantize_codes(x, low, high, bits)
        assert_same_bits(codes, expected[0], name)
        assert_same_bits(scale, expected[1], name)
        assert_same_bits(zero, expected[2], name)
        case = Case(name, x, bits, None)
        gradient = torch.ones_like(x)
        actual = kernels.fake_quantize_backward(gradient, x, low, high, bits, None, None)
        assert_same_bits(actual, clipped_gradient(case, low, high, gradient), name)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)], ids=str)
def test_empty(kernels, shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    bounds = torch.tensor(-1.0), torch.tensor(1.0)
    assert kernels.fake_quantize(x, *bounds, 4, None, None).shape == shape
    assert kernels.fake_quantize_backward(x, x, *bounds, 4, None, None).shape == shape
    codes, scale, _ = kernels.quantize_codes(x, *bounds, 4, None, None)
    assert codes.shape == shape
    assert_same_bits(scale, torch.tensor(7.5), "scale of an empty tensor")
    for axis in (None, -1):
        actual = kernels.fake_quantize_dynamic(x, 4, axis, None, False)
        expected = reference.fake_quantize_dynamic(x, 4, axis=axis)
        for mine, theirs in zip(actual, expected, strict=True):
            assert_same_bits(mine, theirs, f"{shape} axis {axis}")
    channels = x.shape[-1]
    bounds = torch.full((channels,), -1.0), torch.full((channels,), 1.0)
    assert kernels.fake_quantize(x, *bounds, 4, -1, None).shape == shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_dynamic_range_of_special_values(kernels, value: float, dtype: torch.dtype) -> None:
    # One case for each way to reduce: whole channels, tiles by channel, tiles by column.
    for shape, axis in (
        ((5, 40), None),
        ((5, 40), 0),
        ((40, 5), 1),
        ((20000,), None),
        ((1500, 20), 1),
    ):
        x = torch.randn(shape).to(dtype)
        x[-1] = value
        actual = kernels.fake_quantize_dynamic(x, 4, axis, None, False)
        expected = reference.fake_quantize_dynamic(x, 4, axis=axis)
        for mine, theirs in zip(actual, expected, strict=True):
            assert_same_bits(mine, theirs, f"{shape} axis {axis}")


def test_layout_is_kept_without_a_copy(kernels) -> None:
    from synq_fast.kernels._layout import dense

    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    low, high = torch.full((8,), -1.0), torch.full((8,), 1.0)
    assert dense(x, 1)[0].data_ptr() == x.data_ptr()
    assert kernels.fake_quantize(x, low, high, 4, 1, None).stride() == x.stride()
    assert kernels.fake_quantize_dynamic(x, 4, 1, None, False)[0].stride() == x.stride()
    assert kernels.quantize_codes(x, low, high, 4, 1, None)[0].stride() == x.stride()


def test_other_strides_become_what_the_fake_says(kernels) -> None:
    x = torch.randn(8, 9, 10).transpose(0, 2)[::2, 1:]
    assert kernels.fake_quantize(
        x, torch.tensor(-1.0), torch.tensor(1.0), 4, None, None
    ).stride() == (torch.empty_like(x).stride())
    assert (
        kernels.fake_quantize_dynamic(x, 4, 1, None, False)[0].stride()
        == torch.empty_like(x).stride()
    )


def test_golden_values(kernels, golden) -> None:
    count = 0
    for name, case in golden_cases(golden("fake_quantize")):
        axis = 0 if case["kind"] == "per_channel" else None
        y = kernels.fake_quantize(case["x"], case["min"], case["max"], case["bits"], axis, None)
        assert_same_bits(y, case["y"], name)
        count += 1
    assert count == 80
