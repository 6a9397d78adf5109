"""The Triton kernels of learned grids and fused activations, interpreted, against the reference."""

import pytest
import torch

from synq_fast import reference
from tests.kernel_cases import DTYPES, assert_same_bits, interpretable, special_values
from tests.tolerances import assert_close

# NumPy, which the interpreter runs on, tells when infinities appear, as they should.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

# Each with the axis of its channels: one grid in all, rows, columns, both with parts that need two
# stages, and odd sizes everywhere.
SHAPES = [
    ((33,), None),
    ((9000,), None),
    ((3, 5, 7), 1),
    ((2, 3, 2500), 1),
    ((40, 5), 1),
    ((700, 48), 1),
    ((4, 1, 6), 1),
]
INPUTS = [
    (shape, axis, dtype)
    for shape, axis in SHAPES
    for dtype in DTYPES
    if interpretable(shape, dtype)
]


@pytest.fixture(scope="module")
def kernels():
    from synq_fast import kernels

    return kernels


def learned_pair(x, axis):
    shape = () if axis is None else (x.shape[axis],)
    return torch.rand(shape) * 3 + 1, torch.randn(shape) * 3


def gradients(function, leaves, gradient):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    y = function(*leaves)
    y.backward(gradient)
    return y.detach(), *(leaf.grad for leaf in leaves)


@pytest.mark.parametrize(("shape", "axis", "dtype"), INPUTS, ids=str)
def test_learned(kernels, shape, axis, dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    pair = learned_pair(x, axis)
    gradient = torch.randn(shape).to(dtype)

    def function(x, scale, zero):
        return reference.fake_quantize_learned(x, scale, zero, 4, axis=axis, gradient_scale=0.5)

    y, *expected = gradients(function, (x, *pair), gradient)
    assert_same_bits(kernels.fake_quantize_learned(x, *pair, 4, axis), y, "values")
    actual = kernels.fake_quantize_learned_backward(gradient, x, *pair, 4, axis, 0.5)
    assert_same_bits(actual[0], expected[0], "gradient of x")
    count = x.numel() / pair[0].numel()
    for mine, theirs in zip(actual[1:], expected[1:], strict=True):
        assert mine.shape == theirs.shape
        assert_close(mine, theirs, "learned_gradient", factor=4 * count)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_learned_special_values(kernels, dtype: torch.dtype) -> None:
    x = special_values(dtype)
    for scale, zero in ((1.0, 0.0), (2.0, -0.3), (0.5, 2.5), (1.0, 279620.5), (1e-3, float("nan"))):
        pair = torch.tensor(scale), torch.tensor(zero)
        for bits in (2, 8):
            y, expected, _, _ = gradients(
                lambda *leaves, bits=bits: reference.fake_quantize_learned(*leaves, bits),
                (x, *pair),
                torch.ones_like(x),
            )
            assert_same_bits(kernels.fake_quantize_learned(x, *pair, bits, None), y, f"{pair}")
            actual = kernels.fake_quantize_learned_backward(
                torch.ones_like(x), x, *pair, bits, None, 1.0
            )
            assert_same_bits(actual[0], expected, f"{pair}, gradient")
            assert actual[1].isnan()


@pytest.mark.parametrize(("shape", "axis", "dtype"), INPUTS, ids=str)
def test_relu(kernels, shape, axis, dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    gradient = torch.randn(shape).to(dtype)
    bounds = [torch.rand(() if axis is None else (shape[axis],)) + low for low in (-1.0, 1.0)]
    for upper, clip in ((None, False), (None, True), (1.25, True)):
        y, expected = gradients(
            lambda leaf, upper=upper, clip=clip: reference.relu_fake_quantize(
                leaf, *bounds, 4, axis=axis, upper=upper, ste="clip" if clip else "identity"
            ),
            (x,),
            gradient,
        )
        assert_same_bits(kernels.relu_fake_quantize(x, *bounds, 4, axis, upper), y, f"{upper}")
        actual = kernels.relu_fake_quantize_backward(gradient, x, *bounds, 4, axis, upper, clip)
        assert_same_bits(actual, expected, f"gradient, {upper}, {clip}")


@pytest.mark.parametrize(
    ("shape", "dtype"), [(shape, dtype) for shape, axis, dtype in INPUTS if axis == 1], ids=str
)
def test_affine_relu(kernels, shape, dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    gradient = torch.randn(shape).to(dtype)
    residual = torch.randn(shape[::-1]).to(dtype).permute(*reversed(range(x.ndim)))
    factors = torch.randn(2, shape[1]).unbind()
    bounds = torch.tensor(0.0), torch.tensor(2.0)
    for upper, clip, added in ((None, False, False), (1.25, True, True), (None, False, True)):
        summands = (residual,) if added else ()

        def function(*leaves, upper=upper, clip=clip, added=added):
            options = {"upper": upper, "ste": "clip" if clip else "identity"}
            if added:
                *leaves, options["residual"] = leaves
            return reference.affine_relu_fake_quantize(*leaves, *bounds, 4, **options)

        y, *expected = gradients(function, (x, *factors, *summands), gradient)
        arguments = *factors, residual if added else None, *bounds, 4, upper
        case = f"{upper}, {clip}, {added}"
        assert_same_bits(kernels.affine_relu_fake_quantize(x, *arguments), y, case)
        for parameters in (True, False):
            of_x, *sums, of_residual = kernels.affine_relu_fake_quantize_backward(
                gradient, x, *arguments, clip, parameters, added
            )
            assert_same_bits(of_x, expected[0], f"gradient, {case}, {parameters}")
            if added:
                assert_same_bits(of_residual, expected[3], f"residual, {case}, {parameters}")
            else:
                assert of_residual.shape == (0,)
            for mine, theirs in zip(sums, expected[1:3], strict=True):
                if parameters:
                    count = x.numel() / shape[1]
                    assert_close(mine, theirs, "affine_gradient", factor=8 * count)
                else:
                    assert mine.shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu_special_values(kernels, dtype: torch.dtype) -> None:
    x = special_values(dtype)
    x = torch.stack([x, x, x], 1)
    factors = torch.tensor([1.0, -0.5, 1e30]), torch.tensor([0.0, 1.0, 0.0])
    for bounds in ((0.0, 7.5), (float("nan"), 1.0)):
        low, high = (torch.tensor(bound) for bound in bounds)
        for upper in (None, 2.5):
            expected = reference.relu_fake_quantize(x, low, high, 4, upper=upper)
            actual = kernels.relu_fake_quantize(x, low, high, 4, None, upper)
            assert_same_bits(actual, expected, f"relu, {upper}")
            expected = reference.affine_relu_fake_quantize(x, *factors, low, high, 4, upper=upper)
            actual = kernels.affine_relu_fake_quantize(x, *factors, None, low, high, 4, upper)
            assert_same_bits(actual, expected, f"affine, {upper}")
            expected = reference.affine_relu_fake_quantize(
                x, *factors, low, high, 4, residual=x.flip(0), upper=upper
            )
            actual = kernels.affine_relu_fake_quantize(x, *factors, x.flip(0), low, high, 4, upper)
            assert_same_bits(actual, expected, f"residual, {upper}")
            _, expected = gradients(
                lambda leaf, low=low, high=high, upper=upper: reference.relu_fake_quantize(
                    leaf, low, high, 4, upper=upper, ste="clip"
                ),
                (x,),
                torch.ones_like(x),
            )
            actual = kernels.relu_fake_quantize_backward(
                torch.ones_like(x), x, low, high, 4, None, upper, True
            )
            assert_same_bits(actual, expected, f"gradient, {upper}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_groups_and_symmetric_ranges(kernels, dtype: torch.dtype) -> None:
    for shape, axis, groups in (
        ((6, 35), 0, 3),
        ((5, 12, 7), 1, 4),
        ((5, 12, 7), 1, 1),
        ((40, 12), 1, 3),
        ((2, 6, 9000), 1, 2),
        ((1500, 20), 1, None),
        ((20000,), None, None),
    ):
        if not interpretable(shape, dtype):
            continue
        x = torch.randn(shape).to(dtype)
        for symmetric in (False, True):
            options = {"axis": axis, "groups": groups}
            y, low, high = reference.fake_quantize_dynamic(x, 4, symmetric=symmetric, **options)
            actual = kernels.fake_quantize_dynamic(x, 4, axis, groups, symmetric)
            for mine, theirs in zip(actual, (y, low, high), strict=True):
                assert_same_bits(mine, theirs, f"{shape} {axis} {groups} {symmetric}")
        arguments = x, low, high, 4, axis, groups
        assert_same_bits(kernels.fake_quantize(*arguments), y, f"{shape} given")
        expected = reference.quantize_codes(x, low, high, 4, **options)
        for mine, theirs in zip(kernels.quantize_codes(*arguments), expected, strict=True):
            assert_same_bits(mine, theirs, f"{shape} codes")


def test_empty(kernels) -> None:
    x = torch.empty(0, 3)
    pair = torch.ones(3), torch.zeros(3)
    assert kernels.fake_quantize_learned(x, *pair, 4, 1).shape == (0, 3)
    results = kernels.fake_quantize_learned_backward(x, x, *pair, 4, 1, 1.0)
    assert results[1].tolist() == results[2].tolist() == [0, 0, 0]
    bounds = torch.zeros(()), torch.ones(())
    arguments = x, *pair, x, *bounds, 4, None
    assert kernels.affine_relu_fake_quantize(*arguments).shape == (0, 3)
    results = kernels.affine_relu_fake_quantize_backward(x, *arguments, False, True, True)
    assert results[3].shape == (0, 3)
    assert results[1].tolist() == results[2].tolist() == [0, 0, 0]
