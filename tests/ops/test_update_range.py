"""Running ranges: a float64 moving average as the oracle, golden values as the warning."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synq_fast import ops, reference
from tests.ops.backends import BACKENDS, assert_same, require
from tests.ops.cases import ALL, layouts, special_values
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


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(("shape", "dtype"), ALL, ids=str)
def test_every_backend_gives_the_reference_s_bits(backend, device, shape, dtype):
    require(backend)
    for x in layouts(shape, dtype).values():
        if x.numel() == 0:
            continue
        batches = [x, x * -3, x[:1] if x.ndim else x]
        with ops.backend(backend):
            actual = follow(ops.update_range, batches, 0.7, device)
        for mine, theirs in zip(actual, follow(reference.update_range, batches, 0.7), strict=True):
            assert_same(mine, theirs)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_every_backend_keeps_special_values(backend, device):
    require(backend)
    values = special_values()
    finite = values[values.isfinite()]
    batches = [finite, finite * 1e-30, values[2:3], values[3:4], torch.ones(3)]
    for count in range(1, len(batches) + 1):
        for large in (1, 3000):
            given = [batch.repeat(large) for batch in batches[:count]]
            with ops.backend(backend):
                actual = follow(ops.update_range, given, 0.9, device)
            expected = follow(reference.update_range, given, 0.9)
            for mine, theirs in zip(actual, expected, strict=True):
                assert_same(mine, theirs)
    batches[0] = values
    with ops.backend(backend):
        low, high, step = follow(ops.update_range, batches, 0.9, device)
    assert low.isnan()
    assert high.isnan()
    assert step == len(batches)


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
