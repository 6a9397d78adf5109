"""Range search: golden scores and indices, a brute-force oracle, degenerate inputs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from synq_fast import ops
from synq_fast.reference.search_range import candidate_scores
from tests.golden_cases import golden_cases
from tests.tolerances import assert_close


def quantization_error(x, low, high, bits, norm):
    """Mean error in float64, written from the definition of the quantizer."""
    levels = 2**bits - 1
    scale = levels / max(high - low, 1e-8)
    zero = np.round(scale * low)
    codes = np.clip(np.round(scale * x - zero), 0, levels)
    return np.mean(np.abs((codes + zero) / scale - x) ** norm)


def test_golden(golden):
    for _, case in golden_cases(golden("mse_range")):
        scores = candidate_scores(case["x"], case["bits"])
        assert_close(scores, case["scores"], "range_score")
        assert scores.argmin() == case["best_index"]
        low, high = ops.search_range(case["x"], case["bits"])
        assert (low.item(), high.item()) == (case["min"], case["max"])
        assert low.shape == high.shape == ()
        assert low.dtype == high.dtype == torch.float32


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


def test_first_of_equal_candidates_wins():
    assert [v.item() for v in ops.search_range(torch.zeros(5), 4)] == [0.0, 0.0]
    scores = candidate_scores(torch.zeros(5), 4)
    assert torch.equal(scores, torch.zeros(80))


@pytest.mark.parametrize("value", [3.0, -0.25, 1e-6, -1e30])
def test_constant_keeps_its_range(value):
    expected = torch.tensor(value).item()
    assert [v.item() for v in ops.search_range(torch.full((4, 3), value), 4)] == [expected] * 2


def test_an_outlier_is_clipped_at_few_bits_only():
    x = torch.cat([torch.linspace(-1, 1, 1000), torch.tensor([4.0])])
    assert ops.search_range(x, 2)[1] < 2.5
    assert ops.search_range(x, 16)[1] == 4.0


def test_one_candidate_is_the_plain_range():
    x = torch.randn(100)
    assert ops.search_range(x, 2, candidates=1) == tuple(torch.aminmax(x))


def test_scales_by_powers_of_two():
    x = torch.randn(500)
    low, high = ops.search_range(x, 3)
    assert ops.search_range(x * 8, 3) == (low * 8, high * 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_searched_in_float32(dtype):
    x = torch.randn(3, 4, 5, 6).to(dtype)
    assert ops.search_range(x, 4) == ops.search_range(x.float(), 4)
    channels_last = x.to(memory_format=torch.channels_last)
    assert ops.search_range(channels_last, 4) == ops.search_range(x, 4)


def test_not_finite():
    assert all(v.isnan() for v in ops.search_range(torch.tensor([1.0, float("nan"), 2.0]), 4))
    low, high = ops.search_range(torch.tensor([-1.0, float("inf")]), 4)
    assert (low.item(), high.item()) == (-1.0, float("inf"))


def test_input_and_gradient_are_left_alone():
    x = torch.randn(50, requires_grad=True)
    before = x.detach().clone()
    low, high = ops.search_range(x, 3)
    assert not low.requires_grad
    assert not high.requires_grad
    assert torch.equal(x.detach(), before)


class LargestResult(TorchDispatchMode):
    """Remembers the number of float32 elements of the largest storage that an op returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // 4)
        return result


def test_no_intermediate_is_larger_than_the_input():
    x = torch.randn(10_000)
    with LargestResult() as largest:
        ops.search_range(x, 4)
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
    ],
)
def test_bad_arguments(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        ops.search_range(*arguments, **keywords)
