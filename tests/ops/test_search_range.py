"""Range search: golden scores and indices, a float64 oracle on every backend, degenerate inputs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from synq_fast import ops, reference
from synq_fast.reference.search_range import candidate_scores
from synq_fast.testing.cases.search_range import DISTRIBUTIONS, EXCESS, distribution, excess
from tests.ops.backends import BACKENDS, require


@pytest.fixture(params=[pytest.param(p.values, id=p.id, marks=p.marks) for p in BACKENDS])
def search(request):
    """The op on one backend, with the input moved there."""
    backend, device = request.param
    require(backend)

    def run(x, bits, **keywords):
        with ops.backend(backend):
            found = ops.search_range(x.to(device), bits, **keywords)
        return tuple(value.cpu() for value in found)

    return run


def quantization_error(x, low, high, bits, norm):
    """Mean error in float64, written from the definition of the quantizer."""
    levels = 2**bits - 1
    scale = levels / max(high - low, 1e-8)
    zero = np.round(scale * low)
    codes = np.clip(np.round(scale * x - zero), 0, levels)
    return np.mean(np.abs((codes + zero) / scale - x) ** norm)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 8),
    st.integers(1, 40),
    st.sampled_from([1.0, 2.0, 2.4]),
    st.sampled_from([0.01, 1.0, 300.0]),
    st.integers(0, 2**31),
)
def test_no_candidate_is_better(bits, count, norm, spread, seed):
    x = torch.randn(count, generator=torch.Generator().manual_seed(seed)).pow(3) * spread
    values = x.double().numpy()
    low, high = (v.item() for v in ops.search_range(x, bits, norm=norm))
    found = quantization_error(values, low, high, bits, norm)
    least = min(
        quantization_error(values, values.min() * f, values.max() * f, bits, norm)
        for f in 1 - 0.01 * np.arange(80)
    )
    # float32 may break a near tie the other way, or round a tie of a code to the other side.
    assert found <= least * 1.02 + 1e-12 * spread


def test_a_large_norm_runs_on_the_reference(search):
    x = distribution("normal", 9000)
    assert search(x, 4, norm=60) == reference.search_range(x, 4, norm=60)


def test_first_of_equal_candidates_wins(search):
    assert [v.item() for v in search(torch.zeros(5), 4)] == [0.0, 0.0]
    x = torch.tensor([-1.0, 0.0] * 6000)
    assert [v.item() for v in search(x, 4)] == [-1.0, 0.0]
    scores = candidate_scores(torch.zeros(5), 4)
    assert torch.equal(scores, torch.zeros(80))


@pytest.mark.parametrize("value", [3.0, -0.25, 1e-6, -1e30])
def test_constant_keeps_its_range(search, value):
    expected = torch.tensor(value).item()
    assert [v.item() for v in search(torch.full((4, 3), value), 4)] == [expected] * 2


def test_an_outlier_is_clipped_at_few_bits_only(search):
    x = torch.cat([torch.linspace(-1, 1, 1000), torch.tensor([4.0])])
    assert search(x, 2)[1] < 2.5
    assert search(x, 16)[1] == 4.0


def test_one_candidate_is_the_plain_range(search):
    x = torch.randn(100)
    assert search(x, 2, candidates=1) == tuple(torch.aminmax(x))


def test_scales_by_powers_of_two(search):
    for count in (500, 9000):
        x = torch.randn(count)
        low, high = search(x, 3)
        assert search(x * 8, 3) == (low * 8, high * 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_searched_in_float32(dtype):
    x = torch.randn(3, 4, 5, 6).to(dtype)
    assert ops.search_range(x, 4) == ops.search_range(x.float(), 4)
    channels_last = x.to(memory_format=torch.channels_last)
    assert ops.search_range(channels_last, 4) == ops.search_range(x, 4)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((64, 8, 3, 3), 0), ((96, 1, 3, 3), 0), ((5, 4608), 0), ((4, 6, 9, 7), 1), ((300, 40), -1)],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_channel_finds_what_it_finds_alone(search, shape, axis, layout):
    """The same bits on each backend, whatever lies beside it."""
    x = distribution("cubed", int(np.prod(shape))).view(shape)
    if x.ndim == 4:
        x = x.to(memory_format=layout)
    elif layout == torch.channels_last:
        x = x.T.contiguous().T
    low, high = search(x, 3, axis=axis)
    assert low.shape == high.shape == (shape[axis],)
    for index, channel in enumerate(x.unbind(axis)):
        assert search(channel, 3) == (low[index], high[index])


def test_channels_keep_to_themselves(search):
    """NaN, an infinity and a constant each follow the rule of a whole tensor."""
    x = distribution("normal", 5 * 70).view(5, 70)
    x[0, 3], x[1, 4], x[2] = float("nan"), float("inf"), 0.25
    low, high = search(x, 4, axis=0)
    assert low[0].isnan() and high[0].isnan()
    assert (low[1], high[1]) == tuple(torch.aminmax(x[1]))
    assert (low[2], high[2]) == (0.25, 0.25)
    assert (low[3], high[3]) == search(x[3], 4)


def test_one_channel_is_the_whole_tensor(search):
    x = distribution("cubed", 9000).view(1, -1)
    low, high = search(x, 4, axis=0)
    assert (low[0], high[0]) == search(x, 4)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads):
    x = distribution("cubed", 6 * 9000).view(6, 9000)
    expected = ops.search_range(x, 4, axis=0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert all(map(torch.equal, ops.search_range(x, 4, axis=0), expected))
        assert ops.search_range(x, 4) == ops.search_range(x.view(-1), 4)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("count", [3, 9000])
def test_not_finite(search, count):
    x = torch.linspace(-1, 2, count)
    for value in (float("nan"), float("inf"), float("-inf"), 3e38):
        x[1] = value
        low, high = search(x, 4)
        if value != value:
            assert low.isnan()
            assert high.isnan()
        else:
            assert (low, high) == tuple(torch.aminmax(x))
    x = torch.tensor([-3e38, 3e38, 1.0]).repeat(count)
    assert search(x, 4) == tuple(torch.aminmax(x))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 16),
    st.integers(1, 12_000),
    st.sampled_from(list(DISTRIBUTIONS)),
    st.floats(0.3, 4),
    st.integers(0, 2**31),
)
def test_properties(bits, count, name, norm, seed):
    x = distribution(name, count, seed)
    assert (
        excess(x, ops.search_range(x, bits, norm=norm, candidates=20), bits, 20, norm)[1] <= EXCESS
    )


class LargestResult(TorchDispatchMode):
    """Remembers the number of float32 elements of the largest storage that an op returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // 4)
        return result


def test_no_intermediate_of_the_reference_is_larger_than_the_input():
    x = torch.randn(10_000)
    with LargestResult() as largest:
        reference.search_range(x, 4)
    assert largest.elements == x.numel()


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((torch.empty(0), 4), {}, ValueError, "x is empty"),
        ((torch.ones(3).int(), 4), {}, TypeError, "x must be float16"),
        ((torch.ones(3), 1), {}, ValueError, "bits"),
        ((torch.ones(3), 17), {}, ValueError, "bits"),
        ((torch.ones(3), True), {}, TypeError, "bits"),
        ((torch.ones(3), 4), {"candidates": 0}, ValueError, "candidates must be from 1 to 100"),
        ((torch.ones(3), 4), {"candidates": 101}, ValueError, "candidates must be from 1 to 100"),
        ((torch.ones(3), 4), {"norm": 0}, ValueError, "norm must be above 0, got 0"),
        ((torch.ones(3), 4), {"axis": 1}, IndexError, "axis 1 is out of range for x"),
        ((torch.ones(3), 4), {"axis": True}, TypeError, "axis must be an int or None"),
        ((torch.ones(3, 0), 4), {"axis": 0}, ValueError, "x is empty"),
    ],
)
def test_bad_arguments(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        ops.search_range(*arguments, **keywords)
