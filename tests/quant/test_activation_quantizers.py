import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synq_fast import ops, reference
from synq_fast.quant import ActivationQuantizer, observing
from synq_fast.quant.observers import build_observer


def observed(policy: str, batches, bits: int = 4, **options) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(bits, policy=policy, **options)
    with observing(quantizer):
        for batch in batches:
            quantizer(batch)
    return quantizer


def batches(count: int = 5, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 5, generator=generator) * (i + 1) - 0.5 * i for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_ema_is_the_bias_corrected_average_in_float64(count):
    low = high = 0.0
    for batch in batches(count):
        low = 0.9 * low + 0.1 * batch.min().double().item()
        high = 0.9 * high + 0.1 * batch.max().double().item()
    correction = 1 - 0.9**count
    quantizer = observed("ema", batches(count))
    assert quantizer.range_min.item() == pytest.approx(low / correction, rel=2e-6)
    assert quantizer.range_max.item() == pytest.approx(high / correction, rel=2e-6)


def test_minmax_holds_every_batch():
    data = batches()
    quantizer = observed("minmax", data)
    assert quantizer.range_min == torch.cat(data).min()
    assert quantizer.range_max == torch.cat(data).max()


def test_minmax_does_not_hold_zero_by_itself():
    data = [torch.tensor([3.0, 4.0]), torch.tensor([5.0])]
    quantizer = observed("minmax", data)
    assert (quantizer.range_min, quantizer.range_max) == (3, 5)


@pytest.mark.parametrize("bits", [2, 4])
def test_mse_is_the_mean_of_the_searched_ranges(bits):
    data = batches(3)
    found = [reference.search_range(batch.flatten(), bits) for batch in data]
    quantizer = observed("mse", data, bits)
    for actual, expected in (
        (quantizer.range_min, sum(low for low, _ in found) / 3),
        (quantizer.range_max, sum(high for _, high in found) / 3),
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    assert quantizer.range_max < torch.cat(data).max()


@given(
    shape=st.tuples(
        st.integers(1, 40), st.sampled_from([1, 3, 64, 48]), st.integers(1, 32), st.integers(1, 56)
    )
)
def test_mse_searches_a_sample_of_every_row_and_column(shape):
    x = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "search_range", lambda s, bits: (seen.append(s), (s.min(), s.max()))[1])
        build_observer("mse", 4, None).observe(x)
    sample = seen[0].long()
    assert len(sample) <= 1 << 16
    if x.numel() > 1 << 16:
        assert len(sample) > 1 << 12
        columns, rows = sample % shape[3], sample // shape[3] % shape[2]
        assert len(columns.unique()) == shape[3]
        assert len(rows.unique()) == shape[2]
    else:
        assert len(sample) == x.numel()


@pytest.mark.parametrize("policy", ["ema", "minmax", "mse"])
def test_shrink_scales_both_ends(policy):
    full, half = observed(policy, batches()), observed(policy, batches(), shrink=0.5)
    torch.testing.assert_close(half.range_min, 0.5 * full.range_min, rtol=1e-6, atol=0)
    torch.testing.assert_close(half.range_max, 0.5 * full.range_max, rtol=1e-6, atol=0)


@pytest.mark.parametrize("policy", ["ema", "minmax", "mse"])
def test_range_is_frozen_after_calibration(policy):
    quantizer = observed(policy, batches())
    before = (quantizer.range_min.item(), quantizer.range_max.item())
    x = torch.randn(100) * 1000
    for mode in (True, False):
        quantizer.train(mode)
        y = quantizer(x)
    assert (quantizer.range_min.item(), quantizer.range_max.item()) == before
    assert torch.equal(y, reference.fake_quantize(x, *before, 4))
    assert set(quantizer.state_dict()) == {"range_min", "range_max"}


def test_observing_again_starts_from_nothing():
    quantizer = observed("minmax", [torch.tensor([-100.0, 100.0])])
    with observing(quantizer):
        quantizer(torch.tensor([-1.0, 2.0]))
    assert (quantizer.range_min, quantizer.range_max) == (-1, 2)


def test_observing_ends_after_an_error():
    quantizer = ActivationQuantizer(4)
    with pytest.raises(RuntimeError, match="stop"), observing(quantizer):
        raise RuntimeError("stop")
    assert quantizer.observer is None


@pytest.mark.parametrize(("ste", "passed"), [("identity", [1, 1, 1]), ("clip", [0, 1, 0])])
def test_gradient_outside_the_range(ste, passed):
    quantizer = observed("minmax", [torch.tensor([-1.0, 1.0])], ste=ste)
    x = torch.tensor([-5.0, 0.3, 5.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == passed


def test_learned_range_starts_at_the_observed_one():
    plain = observed("minmax", batches())
    learned = observed("minmax", batches(), learn=True)
    x = torch.randn(50)
    assert torch.equal(learned(x), plain(x))
    with torch.no_grad():
        learned.gain.fill_(0.5)
    expected = reference.fake_quantize(x, 0.5 * plain.range_min, 0.5 * plain.range_max, 4)
    assert torch.equal(learned(x), expected)


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_gain_gradient_is_lsq_by_hand(gain):
    """Per element: (y - x) / gain inside, y / gain outside, over sqrt(n * (2^bits - 1)).

    n counts the elements of one image."""
    bits = 2
    quantizer = observed("minmax", [torch.tensor([-1.0, 2.0])], bits, learn=True)
    with torch.no_grad():
        quantizer.gain.fill_(gain)
    x = torch.tensor([[-9.0, 0.3 * gain], [1.2 * gain, 9.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 10.0], [100.0, 1000.0]])
    (quantizer(x) * weight).sum().backward()
    # The levels of 2 bits on [-1, 2] are -1, 0, 1, 2, times the gain.
    slopes = [-1.0, (0.0 - 0.3), (1.0 - 1.2), 2.0]
    weights = weight.flatten().tolist()
    expected = sum(w * s for w, s in zip(weights, slopes, strict=True)) / math.sqrt(2 * 3)
    assert quantizer.gain.grad.item() == pytest.approx(expected, rel=1e-5)
    assert x.grad.tolist() == [[0, 10], [100, 0]]


def test_gain_gradient_is_the_slope_of_the_output_where_all_is_clipped():
    # On [-1, 2] the zero point of 2 bits needs no rounding, so the output is smooth in the gain.
    quantizer = observed("minmax", [torch.tensor([-1.0, 2.0])], 2, learn=True)
    x = torch.tensor([[-5.0, 5.0, 7.0]])
    weight = torch.tensor([[1.0, 2.0, 5.0]])
    (quantizer(x) * weight).sum().backward()

    def value(gain: float) -> float:
        return (reference.fake_quantize(x, -gain, 2 * gain, 2) * weight).sum().item()

    slope = (value(1.01) - value(0.99)) / 0.02
    assert quantizer.gain.grad.item() * math.sqrt(3 * 3) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("policy", ["ema", "minmax", "mse"])
def test_heads_are_quantized_as_if_each_stood_alone(policy, learn):
    data = [x * torch.tensor([1.0, 5.0, 0.2])[:, None, None] for x in torch.randn(3, 4, 3, 6, 7)]
    whole = observed(policy, data, heads=3, learn=learn)
    alone = [observed(policy, [x[:, head] for x in data], learn=learn) for head in range(3)]
    for name in ("range_min", "range_max"):
        assert torch.equal(getattr(whole, name), torch.stack([getattr(q, name) for q in alone]))
    x = data[0].clone().requires_grad_()
    y = whole(x)
    parts = torch.stack([q(x[:, head]) for head, q in enumerate(alone)], 1)
    assert torch.equal(y, parts)
    assert torch.equal(whole.grid().scale, torch.stack([q.grid().scale for q in alone]))
    if not learn:
        return
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (parts * weight).sum().backward()
    # LSQ's factor is that of a head's own elements.
    expected = torch.stack([q.gain.grad for q in alone])
    torch.testing.assert_close(whole.gain.grad, expected, rtol=1e-5, atol=0)


def test_the_number_of_heads_is_the_value_s():
    with pytest.raises(ValueError), observing(quantizer := ActivationQuantizer(4, heads=3)):
        quantizer(torch.randn(2, 4, 5, 5))
