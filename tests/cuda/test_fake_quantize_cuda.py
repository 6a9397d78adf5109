"""The fake quantization ops on a GPU, CUDA C++ and Triton, equal the reference on the CPU."""

import pytest
import torch

from synq_fast import ops, reference
from tests.golden_cases import golden_cases
from tests.kernel_cases import (
    DTYPES,
    SPECIAL_RANGES,
    assert_same_bits,
    cases,
    special_values,
)
from tests.recording import recorded

pytestmark = pytest.mark.cuda


@pytest.fixture(params=["cuda", "triton"])
def chosen(request):
    reason = ops.available_backends()[request.param]
    if reason is not None:
        pytest.skip(f"the backend {request.param} is not available: {reason}")
    with ops.backend(request.param):
        yield request.param


def check_all(x, bits, axis, low, high, name) -> None:
    on_gpu, low_gpu, high_gpu = (value.cuda() for value in (x, low, high))
    y = ops.fake_quantize(on_gpu, low_gpu, high_gpu, bits, axis=axis)
    assert_same_bits(y.cpu(), reference.fake_quantize(x, low, high, bits, axis=axis), name)

    gradient = torch.randn(x.shape).to(x.dtype)
    leaves = x.detach().clone().requires_grad_(), on_gpu.detach().clone().requires_grad_()
    reference.fake_quantize(leaves[0], low, high, bits, axis=axis, ste="clip").backward(gradient)
    y = ops.fake_quantize(leaves[1], low_gpu, high_gpu, bits, axis=axis, ste="clip")
    y.backward(gradient.cuda())
    assert_same_bits(leaves[1].grad.cpu(), leaves[0].grad, f"{name}, backward")

    expected = reference.quantize_codes(x, low, high, bits, axis=axis)
    actual = ops.quantize_codes(on_gpu, low_gpu, high_gpu, bits, axis=axis)
    for mine, theirs in zip(actual, expected, strict=True):
        assert_same_bits(mine.cpu(), theirs, f"{name}, codes")

    expected = reference.fake_quantize_dynamic(x, bits, axis=axis)
    actual = ops.fake_quantize_dynamic(on_gpu, bits, axis=axis)
    for mine, theirs in zip(actual, expected, strict=True):
        assert_same_bits(mine.cpu(), theirs, f"{name}, dynamic")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cases(chosen, dtype: torch.dtype) -> None:
    for case in cases(dtype):
        _, low, high = reference.fake_quantize_dynamic(case.x, case.bits, axis=case.axis)
        check_all(case.x, case.bits, case.axis, low * 0.7, high * 0.7, case.name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_larger_than_the_device(chosen, dtype: torch.dtype) -> None:
    # Each thread takes several steps on any GPU: 8, 16 and 24 million elements, odd and even.
    for shape, axis in (
        ((8_000_003,), None),
        ((64, 64, 56, 70), 1),
        ((250_001, 96), 1),
        ((3, 5_000_001), 0),
    ):
        x = torch.randn(shape).to(dtype)
        channels = () if axis is None else (shape[axis],)
        check_all(x, 4, axis, torch.full(channels, -2.0), torch.full(channels, 1.5), str(shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [1, 2, 3, 7])
def test_unaligned_memory(chosen, dtype: torch.dtype, shift: int) -> None:
    buffer = torch.randn(100_003).to(dtype)
    low, high = torch.tensor(-2.0), torch.tensor(1.5)
    expected = reference.fake_quantize(buffer[shift:], low, high, 4)
    y = ops.fake_quantize(buffer.cuda()[shift:], low.cuda(), high.cuda(), 4)
    assert_same_bits(y.cpu(), expected, f"shifted by {shift}")
    y, low, high = ops.fake_quantize_dynamic(buffer.cuda()[shift:], 4)
    assert_same_bits(y.cpu(), reference.fake_quantize_dynamic(buffer[shift:], 4)[0], "dynamic")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SPECIAL_RANGES)
def test_special_values(chosen, name: str, dtype: torch.dtype) -> None:
    low, high = (torch.tensor(bound) for bound in SPECIAL_RANGES[name])
    for bits in (2, 4, 8, 16):
        check_all(special_values(dtype), bits, None, low, high, name)


def test_golden_values(chosen, golden) -> None:
    for name, case in golden_cases(golden("fake_quantize")):
        axis = 0 if case["kind"] == "per_channel" else None
        x, low, high = (case[key].cuda() for key in ("x", "min", "max"))
        assert_same_bits(
            ops.fake_quantize(x, low, high, case["bits"], axis=axis).cpu(), case["y"], name
        )


def test_every_run_gives_the_same_bits(chosen) -> None:
    x = torch.randn(64, 96, 57, 31, device="cuda")
    for axis in (None, 0, 1, 3):
        first = ops.fake_quantize_dynamic(x, 4, axis=axis)
        for _ in range(5):
            for mine, theirs in zip(ops.fake_quantize_dynamic(x, 4, axis=axis), first, strict=True):
                assert_same_bits(mine, theirs, f"axis {axis}")


def test_capture_in_a_cuda_graph(chosen) -> None:
    x = torch.randn(32, 64, 28, 28, device="cuda")
    low, high = torch.full((64,), -2.0, device="cuda"), torch.full((64,), 1.5, device="cuda")

    def step() -> list[torch.Tensor]:
        given = ops.fake_quantize(x, low, high, 4, axis=1)
        return [
            given,
            *ops.fake_quantize_dynamic(x, 4),
            *ops.quantize_codes(x, low, high, 8, axis=1),
        ]

    graph, captured = recorded(step)
    x.copy_(torch.randn_like(x))
    graph.replay()
    for mine, theirs in zip(captured, step(), strict=True):
        assert_same_bits(mine, theirs, "replayed")


@pytest.mark.slow
def test_more_than_two_to_the_31_elements(chosen) -> None:
    elements = 2**31 + 4099
    free, _ = torch.cuda.mem_get_info()
    if free < 6 * elements:
        pytest.skip("less than 13 GB of free GPU memory")
    x = torch.zeros(elements, dtype=torch.float16, device="cuda")
    x[-4099:] = torch.randn(4099, device="cuda")
    y, low, high = ops.fake_quantize_dynamic(x, 4)
    expected = reference.fake_quantize(x[-4099:], low, high, 4)
    assert_same_bits(y[-4099:], expected, "the end of a long tensor")
