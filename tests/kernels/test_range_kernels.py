"""The Triton kernels of the range ops, in the interpreter, against the reference and the oracle."""

import pytest
import torch

from synq_fast import ops, reference
from tests.kernel_cases import DTYPES, assert_same_bits
from tests.ops.cases import special_values
from tests.range_cases import SIZES, assert_best, distribution, search_cases

# NumPy, which the interpreter runs on, tells when infinities appear, as they should.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning"),
]

CANDIDATES = 9  # each is a pass of the interpreter


def new_state():
    return torch.zeros(()), torch.zeros(1), torch.zeros((), dtype=torch.int64)


def follow(update, batches, beta=0.7):
    state = new_state()
    for batch in batches:
        update(batch, *state, beta)
    return state


def check_update(batches, name) -> None:
    from synq_fast import kernels

    expected = follow(reference.update_range, batches)
    for mine, theirs in zip(follow(kernels.update_range, batches), expected, strict=True):
        assert_same_bits(mine, theirs, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_update(dtype: torch.dtype) -> None:
    for size in SIZES:
        x = distribution("normal", size).to(dtype)
        check_update([x, x * -3, x[:1]], f"size {size}")
    image = torch.randn(2, 8, 5, 5).to(dtype).to(memory_format=torch.channels_last)
    check_update([image, image[:, ::2], image.transpose(0, 3)], "layouts")


def test_update_with_special_values() -> None:
    values = special_values()
    for first in (values[2:3], values[3:4], values[:1], values):
        for count in (1, 20_000):
            check_update([first.repeat(count), torch.ones(3)], f"{first[0]}")


def test_update_is_seen_by_autograd() -> None:
    from synq_fast import kernels

    state = new_state()
    kernels.update_range(torch.ones(3, requires_grad=True), *state, 0.9)
    assert [value._version for value in state] == [1, 1, 1]
    assert not state[0].requires_grad


def check_search(x, bits, norm=2.4) -> None:
    from synq_fast import kernels

    found = kernels.search_range(x, bits, CANDIDATES, norm)
    assert_best(x, found, bits, CANDIDATES, norm)


def test_search() -> None:
    for _, x, bits in search_cases():
        check_search(x, bits)
    for norm in (0.5, 1.0, 4.0):
        check_search(distribution("cubed", 700), 3, norm)


def test_search_in_several_blocks() -> None:
    for size in (2048, 2049, 9000):
        check_search(distribution("cauchy", size), 3)


def test_search_returns_to_its_sums(monkeypatch) -> None:
    from synq_fast.kernels.search_range import search_range as launcher

    module = __import__("sys").modules[launcher.__module__]
    monkeypatch.setattr(module, "MAXIMUM_PROGRAMS", 2)
    check_search(distribution("cubed", 4 * 2048 + 5), 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_search_of_other_types_and_layouts(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 5, 6).to(dtype)
    for value in (x, x.to(memory_format=torch.channels_last), x[:, ::2]):
        check_search(value, 4)


def test_search_without_numbers() -> None:
    from synq_fast import kernels

    for value in (float("nan"), float("inf"), float("-inf"), 3e38):
        for count in (40, 9000):
            x = torch.linspace(-1, 2, count)
            x[3] = value
            x[4] = -3e38 if value == 3e38 else 0.0
            expected = reference.search_range(x, 4, candidates=CANDIDATES)
            for mine, theirs in zip(
                kernels.search_range(x, 4, CANDIDATES, 2.4), expected, strict=True
            ):
                assert_same_bits(mine, theirs, str(value))


def test_every_candidate_shrinks_as_the_reference_says() -> None:
    from synq_fast import kernels

    # Many small values beside an outlier: the smallest range on offer wins.
    x = torch.cat([torch.full((4000,), 0.01), torch.tensor([1.0])])
    for candidates in (1, 2, 50, 100):
        expected = reference.search_range(x, 2, candidates=candidates)
        actual = kernels.search_range(x, 2, candidates, 2.4)
        for mine, theirs in zip(actual, expected, strict=True):
            assert_same_bits(mine, theirs, f"{candidates} candidates")


def test_overloads() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    library = torch.ops.synq_fast
    torch.library.opcheck(library.update_range.triton, (x, *new_state(), 0.9))
    torch.library.opcheck(library.search_range.triton, (x, 4, 3, 2.4))
    with ops.backend("triton"):
        state = new_state()
        ops.update_range(x, *state)
        found = ops.search_range(x, 4, candidates=CANDIDATES)
    assert state[2] == 1
    assert_best(x.detach(), found, 4, CANDIDATES)
    with pytest.raises(ValueError, match="x is empty"):
        library.update_range.triton(torch.empty(0), *new_state(), 0.9)
