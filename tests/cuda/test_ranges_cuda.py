"""The range ops on a GPU, CUDA C++ and Triton, against the reference on the CPU and the oracle."""

import pytest
import torch

from synq_fast import ops, reference
from tests.kernel_cases import DTYPES, assert_same_bits
from tests.range_cases import DISTRIBUTIONS, SIZES, assert_best, distribution
from tests.recording import recorded

pytestmark = pytest.mark.cuda


@pytest.fixture(params=["cuda", "triton"])
def chosen(request):
    reason = ops.available_backends()[request.param]
    if reason is not None:
        pytest.skip(f"the backend {request.param} is not available: {reason}")
    with ops.backend(request.param):
        yield request.param


def new_state(device):
    parts = torch.zeros(()), torch.zeros(()), torch.zeros((), dtype=torch.int64)
    return tuple(part.to(device) for part in parts)


def check_update(batches) -> None:
    actual, expected = new_state("cuda"), new_state("cpu")
    for batch in batches:
        ops.update_range(batch.cuda(), *actual, 0.7)
        reference.update_range(batch, *expected, 0.7)
    for mine, theirs in zip(actual, expected, strict=True):
        assert_same_bits(mine.cpu(), theirs, str(batches[0].shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_update(chosen, dtype: torch.dtype) -> None:
    for size in (*SIZES, 8_000_003):
        x = torch.randn(size).to(dtype)
        check_update([x, x * -3, x[1:] if size > 1 else x])
    image = torch.randn(8, 64, 28, 28).to(dtype)
    check_update([image.to(memory_format=torch.channels_last), image[:, ::2]])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_update_with_special_values(chosen, value: float) -> None:
    for size in (3, 100_001):
        x = torch.randn(size)
        x[-1] = value
        check_update([x, torch.randn(size)])


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_search(chosen, name: str) -> None:
    for count, bits in ((1, 4), (50, 3), (4097, 8), (1_000_003, 4)):
        x = distribution(name, count)
        assert_best(x, ops.search_range(x.cuda(), bits), bits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [2, 4, 8, 9, 16])
def test_search_of_types_and_bits(chosen, dtype: torch.dtype, bits: int) -> None:
    x = distribution("cubed", 40_000).clamp(-6e4, 6e4).to(dtype)
    for norm in (1.0, 2.4, 4.0):
        found = ops.search_range(x.cuda()[3:], bits, norm=norm)
        assert_best(x[3:], found, bits, norm=norm)


def test_search_without_numbers(chosen) -> None:
    for value in (float("nan"), float("inf"), 3e38):
        x = torch.linspace(-3e38 if value == 3e38 else -1.0, 2, 5000)
        x[3] = value
        for mine, theirs in zip(
            ops.search_range(x.cuda(), 4), reference.search_range(x, 4), strict=True
        ):
            assert_same_bits(mine.cpu(), theirs, str(value))


def test_every_run_gives_the_same_choice(chosen) -> None:
    x = torch.randn(3_000_017, device="cuda")
    first = ops.search_range(x, 4)
    assert all(ops.search_range(x, 4) == first for _ in range(5))


def test_capture_in_a_cuda_graph(chosen) -> None:
    x = torch.randn(32, 64, 28, 28, device="cuda")
    state = new_state("cuda")

    def step():
        ops.update_range(x, *state)
        return ops.search_range(x, 4)

    graph, captured = recorded(step)
    for part in state:
        part.zero_()
    batches = [torch.randn_like(x) * (i + 1) for i in range(3)]
    expected = new_state("cpu")
    for batch in batches:
        x.copy_(batch)
        graph.replay()
        reference.update_range(batch.cpu(), *expected)
    for mine, theirs in zip(state, expected, strict=True):
        assert_same_bits(mine.cpu(), theirs, "replayed")
    assert_best(x, captured, 4)


def test_states_on_another_device_are_refused(chosen) -> None:
    with pytest.raises(ValueError, match="move both to one device"):
        ops.update_range(torch.ones(3, device="cuda"), *new_state("cpu"))


@pytest.mark.slow
def test_more_than_two_to_the_31_elements(chosen) -> None:
    elements = 2**31 + 4099
    free, _ = torch.cuda.mem_get_info()
    if free < 3 * elements:
        pytest.skip("less than 7 GB of free GPU memory")
    x = torch.zeros(elements, dtype=torch.float16, device="cuda")
    x[-2:] = torch.tensor([-5.0, 7.0])
    state = new_state("cuda")
    ops.update_range(x, *state, 0.0)
    assert (state[0].item(), state[1].item()) == (-5.0, 7.0)
    low, high = ops.search_range(x, 4, candidates=2)
    # Zero is a level of both; only the two ends have errors, least where they are not clipped.
    assert (low.item(), high.item()) == tuple(
        v.item() for v in reference.search_range(x[-5000:].cpu(), 4, candidates=2)
    )
