"""The CUDA kernels of learned grids and fused activations, run on the CPU thread by thread."""

import ctypes

import pytest
import torch

from synq_fast import reference
from tests.emulation.build import build, shifted
from tests.kernel_cases import DTYPES, assert_same_bits, special_values
from tests.tolerances import assert_close

SIZES = [(name, ctypes.c_int64) for name in ("outer", "channels", "inner")]


class LearnedParams(ctypes.Structure):
    """FakeQuantizeLearnedParams of csrc/fake_quantize_learned.h."""

    _fields_ = [
        *SIZES,
        *((name, ctypes.c_void_p) for name in ("x", "gradient", "y", "scale", "zero_point")),
        *((name, ctypes.c_void_p) for name in ("grad_scale", "grad_zero_point", "workspace")),
        ("gradient_scale", ctypes.c_double),
        ("bits", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    ]


class ReluParams(ctypes.Structure):
    """ReluFakeQuantizeParams of csrc/relu_fake_quantize.h."""

    _fields_ = [
        *SIZES,
        *((name, ctypes.c_void_p) for name in ("x", "gradient", "residual", "y", "grad_residual")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "range_min", "range_max")),
        *((name, ctypes.c_void_p) for name in ("grad_weight", "grad_bias", "workspace")),
        ("upper", ctypes.c_float),
        ("bits", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("clip", ctypes.c_bool),
    ]


# Memory as (outer, channels, inner), with the reason.
LAYOUTS = {
    (1, 1, 1): "one element",
    (1, 1, 5003): "one channel, odd",
    (1, 1, 40000): "one channel, several parts",
    (3, 5, 7): "pieces too short for packs, odd",
    (2, 8, 16): "aligned rows",
    (2, 3, 5501): "channels in two long odd pieces",
    (2, 3, 8000): "the same, aligned: several parts",
    (90, 70, 1): "channels innermost",
    (700, 48, 1): "the same, more rows than one multiprocessor holds",
    (40, 6, 9): "narrow pieces",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    library = build("fake_quantize", tmp_path_factory)
    library.learned_workspace.restype = ctypes.c_int64
    library.affine_relu_workspace.restype = ctypes.c_int64
    return library


@pytest.fixture(params=[1, 3], ids=["1 multiprocessor", "3 multiprocessors"])
def device(request, library) -> ctypes.CDLL:
    library.set_multiprocessors(request.param)
    return library


def call(library, name, params_type, x, shift, workspace=None, **values):
    """Calls a launcher on memory of the shape (outer, channels, inner); returns y."""
    memory = shifted(x, shift)
    y = shifted(torch.zeros_like(x), shift)
    tensors = {key: v for key, v in values.items() if isinstance(v, torch.Tensor)}
    for key in ("gradient", "residual"):
        if key in tensors:
            tensors[key] = shifted(tensors[key], shift)
    numbers = {key: v for key, v in values.items() if not isinstance(v, torch.Tensor)}
    sizes = dict(zip(("outer", "channels", "inner"), x.shape, strict=True))
    params = params_type(
        x=memory.data_ptr(),
        y=y.data_ptr(),
        dtype=DTYPES.index(x.dtype),
        **{key: tensor.data_ptr() for key, tensor in tensors.items()},
        **numbers,
        **sizes,
    )
    if workspace is not None:
        size = getattr(library, workspace)(ctypes.byref(params))
        scratch = torch.full((size + 1,), float("nan"), dtype=torch.float64)
        params.workspace = scratch.data_ptr()
    assert getattr(library, name)(ctypes.byref(params)) == 0
    if workspace is not None:
        assert scratch[size].isnan(), f"{name} wrote beyond its workspace"
        assert not scratch[:size].isnan().any(), f"{name} left its workspace unwritten"
    return y


def gradients(function, leaves, gradient):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    y = function(*leaves)
    y.backward(gradient)
    return y.detach(), *(leaf.grad for leaf in leaves)


def check_learned(library, x, pair, bits, shift, name) -> None:
    gradient = torch.randn(x.shape).to(x.dtype)
    y, *expected = gradients(
        lambda *leaves: reference.fake_quantize_learned(*leaves, bits, axis=1, gradient_scale=0.5),
        (x, *pair),
        gradient,
    )
    arguments = {"scale": pair[0], "zero_point": pair[1], "bits": bits, "gradient_scale": 0.5}
    actual = call(library, "learned", LearnedParams, x, shift, **arguments)
    assert_same_bits(actual, y, name)
    sums = torch.full((2, x.shape[1]), float("nan"))
    actual = call(
        library, "learned_backward", LearnedParams, x, shift, "learned_workspace",
        gradient=gradient, grad_scale=sums[0], grad_zero_point=sums[1], **arguments,
    )  # fmt: skip
    assert_same_bits(actual, expected[0], f"{name}, gradient")
    unit = (1 + pair[1].abs()) / pair[0].square()
    for mine, theirs in zip(sums, expected[1:], strict=True):
        factor = 16 * x.numel() / x.shape[1]
        assert_close(mine / unit, theirs / unit, "learned_gradient", factor=factor)


def check_residual(library, x, grid, factors, upper, clip, shift, of_residual_shift=None) -> None:
    """The affine map with a residual; its gradient may lie otherwise than the rest."""
    gradient, residual = (torch.randn(x.shape).to(x.dtype) for _ in range(2))
    name = f"{tuple(x.shape)} shifted by {shift}, upper {upper}, clip {clip}"
    y, *expected = gradients(
        lambda x, residual, *factors: reference.affine_relu_fake_quantize(
            x, *factors, *grid, residual=residual, upper=upper, ste="clip" if clip else "identity"
        ),
        (x, residual, *factors),
        gradient,
    )
    arguments = {
        "weight": factors[0], "bias": factors[1], "range_min": grid[0], "range_max": grid[1],
        "bits": grid[2], "upper": float("nan") if upper is None else upper, "clip": clip,
        "residual": residual,
    }  # fmt: skip
    actual = call(library, "affine_relu", ReluParams, x, shift, **arguments)
    assert_same_bits(actual, y, name)
    sums = torch.full((2, x.shape[1]), float("nan"))
    outputs = {"grad_weight": sums[0], "grad_bias": sums[1]}
    of_residual = shifted(x, shift if of_residual_shift is None else of_residual_shift)
    for wanted in (
        outputs,
        {},
        outputs | {"grad_residual": of_residual},
        {"grad_residual": of_residual},
    ):
        of_residual.fill_(float("nan"))
        sums.fill_(float("nan"))
        actual = call(
            library, "affine_relu_backward", ReluParams, x, shift, "affine_relu_workspace",
            gradient=gradient, **arguments, **wanted,
        )  # fmt: skip
        assert_same_bits(actual, expected[0], f"{name}, gradient")
        if "grad_residual" in wanted:
            assert_same_bits(of_residual, expected[1], f"{name}, gradient of the residual")
        if "grad_weight" in wanted:
            for mine, theirs in zip(sums, expected[2:], strict=True):
                factor = 16 * x.numel() / x.shape[1]
                assert_close(mine, theirs, "affine_gradient", factor=factor)


def check_relu(library, x, bits, shift, name) -> None:
    gradient = torch.randn(x.shape).to(x.dtype)
    channels = x.shape[1]
    low, high = torch.rand(channels) - 1.0, torch.rand(channels) + 1.0
    factors = torch.randn(2, channels).unbind()
    for upper, ste in ((None, "identity"), (1.25, "clip")):
        options = {"upper": upper, "ste": ste}
        numbers = {
            "upper": float("nan") if upper is None else upper,
            "clip": ste == "clip",
            "bits": bits,
        }
        y, expected = gradients(
            lambda leaf, options=options: reference.relu_fake_quantize(
                leaf, low, high, bits, axis=1, **options
            ),
            (x,),
            gradient,
        )
        arguments = {"range_min": low, "range_max": high, **numbers}
        actual = call(library, "relu", ReluParams, x, shift, **arguments)
        assert_same_bits(actual, y, f"{name}, relu {upper}")
        actual = call(
            library, "relu_backward", ReluParams, x, shift, gradient=gradient, **arguments
        )
        assert_same_bits(actual, expected, f"{name}, relu gradient {upper}")

        y, *expected = gradients(
            lambda *leaves, options=options: reference.affine_relu_fake_quantize(
                *leaves, low[0], high[0], bits, **options
            ),
            (x, *factors),
            gradient,
        )
        arguments |= {"weight": factors[0], "bias": factors[1]}
        actual = call(library, "affine_relu", ReluParams, x, shift, **arguments)
        assert_same_bits(actual, y, f"{name}, affine {upper}")
        sums = torch.full((2, channels), float("nan"))
        outputs = {"grad_weight": sums[0], "grad_bias": sums[1]}
        for wanted in (outputs, {}):
            actual = call(
                library, "affine_relu_backward", ReluParams, x, shift, "affine_relu_workspace",
                gradient=gradient, **arguments, **wanted,
            )  # fmt: skip
            assert_same_bits(actual, expected[0], f"{name}, affine gradient {upper}")
        for mine, theirs in zip(sums, expected[1:], strict=True):
            assert_close(mine, theirs, "affine_gradient", factor=16 * x.numel() / channels)
        grid = low[0], high[0], bits
        check_residual(library, x, grid, factors, upper, ste == "clip", shift)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_layouts(device, shape, dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    pair = torch.rand(shape[1]) * 3 + 1, torch.randn(shape[1]) * 3
    check_learned(device, x, pair, 4, 0, str(shape))
    check_relu(device, x, 4, 0, str(shape))


@pytest.mark.parametrize("shape", [(3, 5, 2048), (400, 24, 1)], ids=str)
def test_the_device_changes_no_bit(library, shape) -> None:
    x, pair = torch.randn(shape), (torch.rand(shape[1]) + 1, torch.randn(shape[1]))
    results = []
    for multiprocessors in (1, 2, 7):
        library.set_multiprocessors(multiprocessors)
        sums = torch.empty(2, shape[1])
        y = call(
            library, "learned_backward", LearnedParams, x, 0, "learned_workspace",
            gradient=x, scale=pair[0], zero_point=pair[1], bits=4, gradient_scale=1.0,
            grad_scale=sums[0], grad_zero_point=sums[1],
        )  # fmt: skip
        results.append((y, sums))
    library.set_multiprocessors(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [1, 3])
def test_unaligned_memory(library, dtype: torch.dtype, shift: int) -> None:
    library.set_multiprocessors(1)
    for shape in ((1, 1, 5), (1, 1, 5000), (2, 8, 16), (64, 6, 1)):
        x = torch.randn(shape).to(dtype)
        pair = torch.rand(shape[1]) * 3 + 1, torch.randn(shape[1]) * 3
        check_learned(library, x, pair, 8, shift, f"{shape} shifted by {shift}")
        check_relu(library, x, 8, shift, f"{shape} shifted by {shift}")


@pytest.mark.parametrize("shift", [0, 1])
def test_a_gradient_of_the_residual_that_lies_elsewhere(library, shift) -> None:
    library.set_multiprocessors(1)
    grid = torch.tensor(0.0), torch.tensor(2.0), 4
    for shape in ((1, 1, 5000), (2, 8, 16), (64, 8, 1)):
        factors = torch.randn(2, shape[1]).unbind()
        for clip in (False, True):
            check_residual(library, torch.randn(shape), grid, factors, None, clip, shift, 1 - shift)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values(device, dtype: torch.dtype) -> None:
    x = special_values(dtype).reshape(1, 1, -1)
    for scale, zero in ((1.0, 0.0), (2.0, -0.3), (0.5, 2.5), (1.0, 279620.5), (1e-3, float("nan"))):
        pair = torch.tensor([scale]), torch.tensor([zero])
        y = reference.fake_quantize_learned(x, *pair, 4, axis=1)
        arguments = {"scale": pair[0], "zero_point": pair[1], "bits": 4}
        assert_same_bits(call(device, "learned", LearnedParams, x, 0, **arguments), y, f"{pair}")
    low, high = torch.tensor([0.0]), torch.tensor([7.5])
    for upper in (float("nan"), 2.5):
        bound = None if upper != upper else upper
        arguments = {"range_min": low, "range_max": high, "upper": upper, "bits": 4, "clip": True}
        y, expected = gradients(
            lambda leaf, bound=bound: reference.relu_fake_quantize(
                leaf, low, high, 4, axis=1, upper=bound, ste="clip"
            ),
            (x,),
            torch.ones_like(x),
        )
        assert_same_bits(call(device, "relu", ReluParams, x, 0, **arguments), y, f"{upper}")
        actual = call(
            device, "relu_backward", ReluParams, x, 0, gradient=torch.ones_like(x), **arguments
        )
        assert_same_bits(actual, expected, f"gradient, {upper}")
