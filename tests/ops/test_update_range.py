"""Running ranges: a float64 moving average as the oracle, golden values as the warning."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synq_fast import ops, reference
from tests.ops.backends import assert_same
from tests.tolerances import assert_close


def new_state():
    return torch.zeros(()), torch.zeros(()), torch.zeros((), dtype=torch.int64)


def follow(update, batches, beta, device="cpu"):
    """The state after the batches."""
    state = tuple(value.to(device) for value in new_state())
    for batch in batches:
        update(batch.to(device), *state, beta)
    return tuple(value.cpu() for value in state)


def corrected_average(values, beta):
    """The bias-corrected moving average after each value: weights beta^(t-i), normalised."""
    averages = []
    for t in range(1, len(values) + 1):
        weights = beta ** np.arange(t - 1, -1, -1, dtype=np.float64)
        averages.append(float(weights @ np.asarray(values[:t], np.float64) / weights.sum()))
    return averages


def published_average(values, beta):
    """The published tracker, which stores the corrected value and corrects it again."""
    stored, averages = 0.0, []
    for t, value in enumerate(values, 1):
        stored = (beta * stored + (1 - beta) * value) / (1 - beta**t)
        averages.append(stored)
    return averages


def track(minima, maxima, beta):
    state = new_state()
    lows, highs = [], []
    for low, high in zip(minima, maxima, strict=True):
        ops.update_range(torch.tensor([[float(high)], [float(low)]]), *state, beta)
        range_min, range_max = ops.read_range(*state, beta)
        lows.append(range_min.item())
        highs.append(range_max.item())
    return lows, highs


def test_golden_is_the_compounding_tracker(golden):
    arrays = golden("ema_range")
    beta = round(float(arrays["beta"]), 6)
    for index, name in enumerate(("min", "max")):
        batches = arrays[f"batch_{name}"].astype(np.float64)
        ours = track(arrays["batch_min"], arrays["batch_max"], beta)[index]
        assert_close(ours, corrected_average(batches, beta), "running_range")
        published = arrays[f"ref_{name}"]
        np.testing.assert_allclose(published, published_average(batches, beta), rtol=1e-4)
        assert_close(ours[0], published[0], "running_range")
        # Compounding: 5 times too large at the second update, a thousand at the tenth.
        assert abs(published[1] / ours[1]) > 4
        assert abs(published[11] / ours[11]) > 900


def test_published_tracker_agrees_late():
    values = 2 + np.random.default_rng(0).standard_normal(220) / 10
    ours = track(-values, values, 0.9)[1]
    published = published_average(values, 0.9)
    assert published[20] > 1000 * ours[20]
    assert abs(published[-1] / ours[-1] - 1) < 1e-3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), st.floats(0, 0.999))
def test_any_sequence_and_beta(values, beta):
    scale = max(1.0, *map(abs, values))
    lows, highs = track(values, values, beta)
    expected = corrected_average(values, beta)
    for actual in (lows, highs):
        assert_close(actual, expected, "running_range", factor=20 * scale)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.9999])
def test_first_read_is_the_batch(beta):
    lows, highs = track([-3.0], [7.0], beta)
    assert_close([lows[0], highs[0]], [-3.0, 7.0], "running_range")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(width=32), min_size=1, max_size=80),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 4),
)
def test_any_values_have_the_reference_s_bits(values, beta, repeats):
    batches = [torch.tensor(values), torch.tensor(values[::-1][:3])] * repeats
    actual = follow(ops.update_range, batches, beta)
    for mine, theirs in zip(actual, follow(reference.update_range, batches, beta), strict=True):
        assert_same(mine, theirs)


def test_each_operation_is_rounded_on_its_own():
    beta = 0.9
    low, high, _ = follow(ops.update_range, [torch.randn(3, 7) for _ in range(20)], beta)
    torch.manual_seed(0)
    state = np.zeros(2, np.float32)
    for _ in range(20):
        x = torch.randn(3, 7).numpy()
        products = state * np.float32(beta), np.array([x.min(), x.max()]) * np.float32(1 - beta)
        state = products[0] + products[1]
    assert (low.item(), high.item()) == tuple(state.tolist())


def test_in_place_without_gradient():
    state_min, state_max, step = new_state()
    addresses = [t.data_ptr() for t in (state_min, state_max, step)]
    x = torch.tensor([1.0, 5.0], requires_grad=True)
    assert ops.update_range(x, state_min, state_max, step) is None
    assert [t.data_ptr() for t in (state_min, state_max, step)] == addresses
    assert step.item() == 1
    assert not state_max.requires_grad
    assert_close([state_min.item(), state_max.item()], [0.1, 0.5], "running_range")


def test_reading_changes_nothing_and_is_nan_before_the_first_update():
    state = new_state()
    assert all(value.isnan() for value in ops.read_range(*state))
    ops.update_range(torch.ones(3), *state)
    before = [value.clone() for value in state]
    ops.read_range(*state)
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))


def test_states_of_one_element_keep_their_shape():
    state = torch.zeros(1), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    ops.update_range(torch.tensor([-1.0, 2.0]), *state)
    assert [value.shape for value in ops.read_range(*state)] == [(1,), (1,)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_input_types(dtype):
    x = torch.randn(3, 5, 7, 2).to(dtype)
    state = new_state()
    ops.update_range(x.to(memory_format=torch.channels_last)[:, ::2], *state)
    expected = torch.stack(torch.aminmax(x[:, ::2].float()))
    assert_close(torch.stack(ops.read_range(*state)), expected, "running_range")


def test_nan_and_infinity():
    state = new_state()
    ops.update_range(torch.tensor([1.0, float("inf")]), *state)
    low, high = ops.read_range(*state)
    assert low.isfinite()
    assert high == float("inf")
    ops.update_range(torch.tensor([1.0, float("nan")]), *state)
    ops.update_range(torch.tensor([1.0]), *state)
    assert all(value.isnan() for value in ops.read_range(*state))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.empty(0, 3)}, ValueError, r"x is empty, with shape \(0, 3\)"),
        ({"x": torch.ones(2).int()}, TypeError, "x must be float16"),
        ({"state_min": 0.0}, TypeError, "state_min must be a torch.Tensor, got float"),
        ({"state_max": torch.zeros(()).half()}, TypeError, "state_max must be torch.float32"),
        ({"state_max": torch.zeros(2)}, ValueError, r"state_max must have one element.*\(2,\)"),
        ({"step": torch.zeros(())}, TypeError, "step must be torch.int64, got torch.float32"),
        (
            {"step": torch.zeros((), dtype=torch.int64, device="meta")},
            ValueError,
            "step is on meta",
        ),
        ({"beta": 1.0}, ValueError, "beta must be below 1, got 1.0"),
        ({"beta": -0.1}, ValueError, "beta must be at least 0, got -0.1"),
        ({"beta": "0.9"}, TypeError, "beta must be a number, got '0.9'"),
    ],
)
def test_bad_arguments(change, error, message):
    state_min, state_max, step = new_state()
    arguments = {"x": torch.ones(2), "state_min": state_min, "state_max": state_max, "step": step}
    with pytest.raises(error, match=message):
        ops.update_range(**(arguments | change))
    assert step == 0


def one_element():
    return torch.zeros(()), torch.ones(1), torch.zeros((), dtype=torch.int64)


def test_ranges_are_constants_to_autograd_and_changes_are_seen():
    x = torch.randn(3, 4, requires_grad=True)
    low, high, step = one_element()
    versions = [value._version for value in (low, high, step)]
    torch.ops.synq_fast.update_range(x, low, high, step, 0.9)
    assert [value._version for value in (low, high, step)] == [v + 1 for v in versions]
    assert not low.requires_grad
    assert not any(v.requires_grad for v in torch.ops.synq_fast.search_range(x, 4, 5, 2.4))
    scale = torch.ones((), requires_grad=True)
    product = scale * low
    ops.update_range(x, low, high, step)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize(
    ("name", "arguments", "error", "argument"),
    [
        (
            "update_range",
            (torch.ones(2).double(), *one_element(), 0.9),
            TypeError,
            "x",
        ),
        ("update_range", (torch.ones(0), *one_element(), 0.9), ValueError, "x"),
        (
            "update_range",
            (torch.ones(2), torch.zeros(2), *one_element()[1:], 0.9),
            ValueError,
            "state_min",
        ),
        (
            "update_range",
            (torch.ones(2), *one_element()[:2], torch.zeros(()), 0.9),
            TypeError,
            "step",
        ),
        ("update_range", (torch.ones(2), *one_element(), 1.0), ValueError, "beta"),
        ("search_range", (torch.ones(2).int(), 4, 5, 2.4), TypeError, "x"),
        ("search_range", (torch.ones(0), 4, 5, 2.4), ValueError, "x"),
        ("search_range", (torch.ones(2), 1, 5, 2.4), ValueError, "bits"),
        ("search_range", (torch.ones(2), 4, 101, 2.4), ValueError, "candidates"),
        ("search_range", (torch.ones(2), 4, 5, 0.0), ValueError, "norm"),
        ("search_range", (torch.ones(2), 4, 5, 16.5), ValueError, "norm"),
    ],
)
def test_the_registered_ops_check_for_themselves(name, arguments, error, argument):
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(error, match=rf"\b{argument} (is|must)"):
        getattr(torch.ops.synq_fast, name)(*arguments)
    for value, kept in zip(arguments, before, strict=True):
        assert torch.equal(value, kept) if isinstance(value, torch.Tensor) else value == kept
