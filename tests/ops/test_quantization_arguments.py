"""What the quantization ops refuse, and what they say."""

import numpy as np
import pytest
import torch

from synq_fast import ops

x = torch.zeros(2, 3)
zero, one = torch.tensor(0.0), torch.tensor(1.0)


@pytest.fixture(params=["auto", "reference"], autouse=True)
def backend(request):
    with ops.backend(request.param):
        yield


CALLS = [
    lambda bits: ops.fake_quantize(x, zero, one, bits),
    lambda bits: ops.fake_quantize_dynamic(x, bits),
    lambda bits: ops.quantize_codes(x, zero, one, bits),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("bits", [0, 1, 17, -4])
def test_bits_out_of_range(call, bits):
    with pytest.raises(ValueError, match=f"bits must be from 2 to 16, got {bits}"):
        call(bits)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("bits", [True, "4", 4.0, None, np.int64(4)])
def test_bits_of_another_type(call, bits):
    with pytest.raises(TypeError, match="bits must be an int from 2 to 16, got"):
        call(bits)


@pytest.mark.parametrize("op", [ops.fake_quantize, ops.quantize_codes])
def test_order_of_the_range(op):
    with pytest.raises(ValueError, match=r"must not exceed range_max, got 1.0 > 0.0"):
        op(x, 1.0, 0.0, 4)
    with pytest.raises(ValueError, match=r"must not exceed range_max, got 1(.0)? > 0"):
        op(x, one, zero, 4)
    with pytest.raises(ValueError, match=r"got 2(.0)? > 1(.0)? in channel 1"):
        op(x, torch.tensor([0.0, 2.0, 0.0]), torch.ones(3), 4, axis=1)


@pytest.mark.parametrize("op", [ops.fake_quantize, ops.quantize_codes])
def test_ranges(op):
    with pytest.raises(ValueError, match=r"range_min must have shape \(3,\).* got \(2,\)"):
        op(x, torch.zeros(2), torch.ones(3), 4, axis=1)
    with pytest.raises(ValueError, match=r"range_max must hold one value, got shape \(3,\)"):
        op(x, zero, torch.ones(3), 4)
    with pytest.raises(TypeError, match=r"range_min must be float32, got torch.float64"):
        op(x, zero.double(), one, 4)
    with pytest.raises(ValueError, match="range_max is on meta but x is on cpu"):
        op(x, zero, one.to("meta"), 4)
    for value in ("0", None, True):
        with pytest.raises(TypeError, match="range_min must be a number or a float32 tensor"):
            op(x, value, one, 4)


def test_input():
    for dtype in (torch.int32, torch.float64, torch.complex64, torch.bool):
        with pytest.raises(TypeError, match=f"x must be float32, float16 or bfloat16, got {dtype}"):
            ops.fake_quantize(x.to(dtype), zero, one, 4)
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got list"):
        ops.fake_quantize([1.0], zero, one, 4)


def test_axis():
    for axis in (2, -3):
        with pytest.raises(IndexError, match=f"axis {axis} is out of range for a tensor with 2"):
            ops.fake_quantize_dynamic(x, 4, axis=axis)
    with pytest.raises(IndexError, match="axis 0 is out of range for a tensor with 0"):
        ops.fake_quantize_dynamic(zero, 4, axis=0)
    with pytest.raises(TypeError, match=r"axis must be an int or None, got 1.0"):
        ops.fake_quantize_dynamic(x, 4, axis=1.0)


def test_ste():
    with pytest.raises(ValueError, match='ste must be "identity" or "clip", got \'none\''):
        ops.fake_quantize(x, zero, one, 4, ste="none")


def test_registered_op_checks_for_itself():
    op = torch.ops.synq_fast.fake_quantize
    with pytest.raises(ValueError, match=r"bits (is not|must be)"):
        op(x, zero, one, 1, None, None, False)
    with pytest.raises(TypeError, match=r"x (is not|must be)"):
        op(x.double(), zero, one, 4, None, None, False)
    with pytest.raises(IndexError, match=r"axis (is not|5 is out of range)"):
        op(x, zero, one, 4, 5, None, False)
    with pytest.raises(ValueError, match=r"range_max (is not|must hold)"):
        op(x, zero, torch.ones(3), 4, None, None, False)
    with pytest.raises(TypeError, match=r"range_min (is not|must be)"):
        op(x, zero.half(), one, 4, None, None, False)
    with pytest.raises(ValueError, match=r"grad (is not|has shape)"):
        torch.ops.synq_fast.fake_quantize_backward(torch.ones(3), x, zero, one, 4, None, None)


GROUPED = [
    lambda groups, axis: ops.fake_quantize(x, 0.0, 1.0, 4, axis=axis, groups=groups),
    lambda groups, axis: ops.fake_quantize_dynamic(x, 4, axis=axis, groups=groups),
    lambda groups, axis: ops.quantize_codes(x, 0.0, 1.0, 4, axis=axis, groups=groups),
]


@pytest.mark.parametrize("call", GROUPED)
def test_groups(call):
    for groups in (2, 0, -1, 6):
        with pytest.raises(ValueError, match=f"divide the 3 channels of axis 1, got {groups}"):
            call(groups, 1)
    with pytest.raises(ValueError, match="groups=3 needs axis"):
        call(3, None)
    with pytest.raises(TypeError, match=r"groups must be an int or None, got 3.0 \(float\)"):
        call(3.0, 1)
    with pytest.raises(ValueError, match=r"range_max must have shape \(3,\), one value per group"):
        ops.fake_quantize(x, torch.zeros(3), torch.ones(2), 4, axis=1, groups=3)


def test_symmetric():
    with pytest.raises(TypeError, match="symmetric must be True or False, got 1"):
        ops.fake_quantize_dynamic(x, 4, symmetric=1)


def test_registered_ops_check_groups_for_themselves():
    dynamic = torch.ops.synq_fast.fake_quantize_dynamic
    with pytest.raises(ValueError, match=r"groups (is not|must be)"):
        dynamic(x, 4, 1, 2, False, False)
    with pytest.raises(ValueError, match=r"groups( is not|=2 needs axis)"):
        dynamic(x, 4, None, 2, False, False)


HALF_CALLS = {
    "fake_quantize": lambda x, low, high: ops.fake_quantize(x, low, high, 4),
    "per channel": lambda x, low, high: ops.fake_quantize(
        x, low.expand(3).clone(), high.expand(3).clone(), 4, axis=1
    ),
    "quantize_codes": lambda x, low, high: ops.quantize_codes(x, low, high, 4),
    "relu_fake_quantize": lambda x, low, high: ops.relu_fake_quantize(x, low, high, 4),
    "affine_relu_fake_quantize": lambda x, low, high: ops.affine_relu_fake_quantize(
        x, low.expand(3).clone(), high.expand(3).clone(), low, high, 4
    ),
    "fake_quantize_learned": lambda x, low, high: ops.fake_quantize_learned(x, high * 2, low, 4),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("call", HALF_CALLS.values(), ids=HALF_CALLS)
def test_the_range_of_a_half_tensor(call, dtype):
    """What `x.min()` gives is taken as it is, for it is exact in float32."""
    values = torch.randn(5, 3).to(dtype)
    low, high = values.min(), values.max()
    actual, expected = call(values, low, high), call(values, low.float(), high.float())
    if not isinstance(actual, tuple):
        actual, expected = (actual,), (expected,)
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def test_learned_parameters_in_a_half_type_get_their_gradients():
    values = torch.randn(5, 3).half()
    pair = [torch.tensor([2.0]), torch.tensor([0.4])]
    gradients = []
    for convert in (torch.Tensor.half, torch.Tensor.float):
        scale, zero_point = (convert(part.half()).requires_grad_() for part in pair)
        ops.fake_quantize_learned(values, scale, zero_point, 4).sum().backward()
        assert scale.grad.dtype == scale.dtype
        gradients.append(torch.cat([scale.grad, zero_point.grad]))
    assert torch.equal(gradients[0], gradients[1].half())


def test_states_stay_float32():
    state = [torch.zeros((), dtype=torch.float16), torch.zeros(()), torch.zeros(()).long()]
    with pytest.raises(TypeError, match=r"state_min must be torch.float32.*make it with dtype="):
        ops.update_range(x, *state)


LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize(("low", "high"), [(-3e38, 3e38), (-LARGEST, 1e38), (-1e38, 2.9e38)])
def test_a_range_wider_than_the_largest_float(low, high, bits):
    values = torch.cat([torch.linspace(-1, 1, 41) * 2.8e38, torch.tensor([0.0, low / 2, high / 2])])
    y = ops.fake_quantize(values, low, high, bits)
    inside = (values >= low) & (values <= high)
    step = (high - low) / (2**bits - 1)
    # Half a step, and what a scale in so few bits near zero may be off.
    error = (y.double() - values.double())[inside].abs().max()
    assert error <= 0.5 * step * (1 + 2**bits * 2e-6) + 1e-6 * LARGEST
    with ops.backend("reference"):
        assert torch.equal(y, ops.fake_quantize(values, low, high, bits))
    codes, scale, zero_point = ops.quantize_codes(values, low, high, bits)
    assert torch.equal((codes + zero_point) / scale, y)


def test_data_wider_than_the_largest_float():
    values = torch.linspace(-1, 1, 20001) * 3e38
    for results in (
        ops.fake_quantize_dynamic(values, 4),
        ops.fake_quantize_dynamic(values, 4, symmetric=True),
        ops.search_range(values, 4),
    ):
        assert all(result.isfinite().all() for result in results)
    y = ops.fake_quantize_dynamic(values, 4)[0]
    assert (y.double() - values.double()).abs().max() <= 0.51 * 6e38 / 15
    low, high = ops.search_range(values, 4)
    assert low.item() == pytest.approx(-3e38) and high.item() == pytest.approx(3e38)
    state = torch.zeros(()), torch.zeros(()), torch.zeros((), dtype=torch.int64)
    ops.update_range(values, *state)
    assert ops.read_range(*state)[1].item() == pytest.approx(3e38, rel=1e-5)
