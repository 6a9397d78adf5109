"""What attention on quantized operands means; the conformance suite compares the backends."""

import math

import pytest
import torch

from synq_fast import ops
from tests.ops.backends import device  # noqa: F401  (a fixture)

FACTORS = (0.5, 1.0, 2.0, 0.25)


def operands(*shape, device, keys=None):  # noqa: F811
    batch, heads, rows, width = shape
    other = batch, heads, keys or rows, width
    return [torch.randn(size, device=device) for size in (shape, other, other)]


def grids(bits, heads=None, device="cpu"):  # noqa: F811
    """Scales and zero points that clip, and a scale of probabilities."""
    size = () if heads is None else (heads,)
    values = []
    for place in range(3):
        scale = torch.full(size, (2**bits - 1) / (3.5 + place), device=device)
        values += [scale, (scale * -1.5 + 2 ** (bits - 1) + 0.2)]
    found = [*values, torch.full(size, (2**bits - 1) * 2.0, device=device)]
    if heads is not None:
        found = [value * torch.linspace(0.8, 1.3, heads, device=device) for value in found]
    return found


def separate(
    q, k, v, *given, alpha=1.0, bias=None, mask=None, gradient_scale=(1.0,) * 4, p_grid="uniform"
):
    """The ops in a row."""
    *pairs, p_scale, bits = given
    axis = None if p_scale.ndim == 0 else 1
    rounded = [
        ops.fake_quantize_learned(
            x, *pairs[2 * i : 2 * i + 2], bits, axis=axis, gradient_scale=gradient_scale[i]
        )
        for i, x in enumerate((q, k, v))
    ]
    logits = rounded[0] @ rounded[1].transpose(-2, -1) * alpha
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf)
    if p_grid == "log2":
        fixed = p_scale.detach()
        largest = fixed + gradient_scale[3] * (p_scale - fixed)
        return ops.fake_quantize_log(logits.softmax(-1), largest, bits, axis=axis) @ rounded[2]
    zero = torch.full_like(p_scale, 2.0 ** (bits - 1))
    p = ops.fake_quantize_learned(
        logits.softmax(-1), p_scale, zero, bits, axis=axis, gradient_scale=gradient_scale[3]
    )
    return p @ rounded[2]


def run(function, tensors, gradient, *arguments, bias=None, **options):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    if bias is not None:
        options["bias"] = bias.detach().clone().requires_grad_()
    y = function(*leaves, *arguments, **options)
    y.backward(gradient)
    trained = [*leaves, *([options["bias"]] if bias is not None else [])]
    return [y.detach(), *(leaf.grad for leaf in trained)]


def test_by_hand(device):  # noqa: F811
    # Steps of a half; the first query sees both keys alike, the second the first alone.
    q = torch.tensor([[0.1, 0.2], [20.0, 0.0]], device=device)[None, None]
    k = torch.tensor([[3.4, -0.1], [-4.2, 0.2]], device=device)[None, None]
    v = torch.tensor([[1.1, 2.2], [-0.9, 0.4]], device=device)[None, None]
    y = ops.quantized_attention(q, k, v, 2.0, 0.0, 2.0, 0.0, 2.0, 0.0, 4.0, (8, 8, 8, 3))
    # Values are 1, 2 and -1, .5; probabilities 1/2 and 1/2, then 1 and 0.
    first = torch.tensor([[0.0, 0.0], [20.0, 0.0]], device=device)[None, None]
    again = ops.quantized_attention(first, k, v, 2.0, 0.0, 2.0, 0.0, 2.0, 0.0, 4.0, (8, 8, 8, 3))
    assert again[0, 0].tolist() == [[0.0, 1.25], [1.0, 2.0]]
    assert y[0, 0, 1].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("heads", [None, 3], ids=["one grid", "a grid for each head"])
@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("p_grid", ["uniform", "log2"])
def test_beside_the_ops_in_a_row(device, bits, heads, p_grid):  # noqa: F811
    q, k, v = operands(2, 3, 21, 16, device=device, keys=37)
    pairs = grids(bits, heads, device)
    if p_grid == "log2":
        pairs[-1] = 0.1 * pairs[-1] / pairs[-1].max()
    mask = torch.rand(21, 37, device=device) < 0.7
    mask[:, 3] = True
    options = {"alpha": 0.3, "mask": mask, "gradient_scale": FACTORS, "p_grid": p_grid}
    gradient = torch.randn_like(q)
    bias = torch.randn(3, 21, 37, device=device)
    tensors = (q, k, v, *pairs)
    mine = run(ops.quantized_attention, tensors, gradient, bits, bias=bias, **options)
    theirs = run(separate, tensors, gradient, bits, bias=bias, **options)
    for place, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        assert one.shape == other.shape
        # A code of a probability that rounding turns changes a few elements.
        assert (one - other).norm() <= 3e-3 * other.norm() + 1e-6, place
        assert other.norm() > 1e-4


def test_what_is_masked_is_not_seen(device):  # noqa: F811
    q, k, v = operands(1, 2, 9, 8, device=device)
    pairs = grids(8, device=device)
    mask = torch.ones(9, 9, dtype=torch.bool, device=device).tril()
    y = ops.quantized_attention(q, k, v, *pairs, 8, mask=mask)
    for rows in (1, 5):
        alone = ops.quantized_attention(
            q[:, :, :rows], k[:, :, :rows], v[:, :, :rows], *pairs, 8, mask=mask[:rows, :rows]
        )
        torch.testing.assert_close(y[:, :, :rows], alone)
    added = torch.zeros(9, 9, device=device).masked_fill(~mask, -math.inf)
    assert torch.equal(y, ops.quantized_attention(q, k, v, *pairs, 8, mask=added))
    assert torch.equal(y, ops.quantized_attention(q, k, v, *pairs, 8, bias=added))
    nothing = torch.zeros(9, 9, dtype=torch.bool, device=device)
    assert ops.quantized_attention(q, k, v, *pairs, 8, mask=nothing).isnan().all()


def test_masks_take_turns(device):  # noqa: F811
    q, k, v = operands(6, 2, 7, 8, device=device)
    pairs = grids(4, device=device)
    masks = torch.rand(3, 7, 7, device=device) < 0.6
    masks[..., 0] = True
    y = ops.quantized_attention(q, k, v, *pairs, 4, mask=masks)
    for i in range(6):
        one = slice(i, i + 1)
        alone = ops.quantized_attention(q[one], k[one], v[one], *pairs, 4, mask=masks[i % 3])
        assert torch.equal(y[one], alone)


def test_a_bias_for_all_heads_gets_the_sum_of_their_gradients(device):  # noqa: F811
    q, k, v = operands(2, 3, 6, 8, device=device)
    bias = torch.randn(6, 6, device=device)
    gradient = torch.randn_like(q)
    pairs = grids(8, device=device)
    wide = bias.expand(3, 6, 6)
    narrow = run(ops.quantized_attention, (q, k, v, *pairs), gradient, 8, bias=bias)
    full = run(ops.quantized_attention, (q, k, v, *pairs), gradient, 8, bias=wide)
    torch.testing.assert_close(narrow[-1], full[-1].sum(0))


def test_a_joint_projection_is_read_and_written_where_it_lies(device):  # noqa: F811
    joint = torch.randn(2, 9, 3, 4, 8, device=device, requires_grad=True)
    q, k, v = joint.permute(2, 0, 3, 1, 4).unbind(0)
    pairs = grids(8, device=device)
    y = ops.quantized_attention(q, k, v, *pairs, 8)
    copies = [x.detach().contiguous() for x in (q, k, v)]
    assert torch.equal(y, ops.quantized_attention(*copies, *pairs, 8))
    # The reference gives what its last product does.
    assert y.transpose(1, 2).is_contiguous() or ops.current_backend() == "reference"
    (gradient,) = torch.autograd.grad(y.square().sum(), joint)
    expected = run(ops.quantized_attention, (*copies, *pairs), 2 * y.detach(), 8)
    torch.testing.assert_close(gradient, torch.stack(expected[1:4]).permute(1, 3, 0, 2, 4))


def test_scales_may_be_numbers(device):  # noqa: F811
    q, k, v = operands(1, 2, 5, 8, device=device)
    numbers = [5.0, 0.25, 4.0, -1.0, 6.0, 0.0, 30.0]
    tensors = [torch.tensor(value, device=device) for value in numbers]
    y = ops.quantized_attention(q, k, v, *numbers, 4)
    assert torch.equal(y, ops.quantized_attention(q, k, v, *tensors, 4))
    each = [torch.full((2,), value, device=device) for value in numbers]
    assert torch.equal(y, ops.quantized_attention(q, k, v, *each, 4))


@pytest.mark.parametrize("bits", [8, 9])
def test_products_of_codes_are_exact(device, bits):  # noqa: F811
    """Up to 8 bits some processors multiply bytes: nobody can tell."""
    q, k, v = (x * 0.5 for x in operands(1, 2, 20, 12, device=device))
    scale = float(2 ** (bits - 3))
    codes = [(x * scale).round().double() / scale for x in (q, k, v)]
    # Few keys, so that steps of probabilities are far from ties.
    p = (codes[0] @ codes[1].transpose(-2, -1)).softmax(-1)
    position = p * 100
    decided = ((position - position.floor() - 0.5).abs() > 1e-3).all(-1, keepdim=True)
    expected = (position.round() / 100) @ codes[2]
    y = ops.quantized_attention(q, k, v, scale, 0.0, scale, 0.0, scale, 0.0, 100.0, bits)
    error = ((y.double() - expected).abs() * decided).max()
    assert decided.sum() > 10 and error < 2e-6


def test_powers_of_two_by_hand(device):  # noqa: F811
    # The operands of above; the queries see the keys alike, three to one, and the first alone.
    q = torch.tensor([[0.0], [1.0], [40.0]], device=device)[None, None]
    k = torch.tensor([[math.log(3.0)], [0.0]], device=device)[None, None]
    v = torch.tensor([[1.0], [-4.0]], device=device)[None, None]
    exact = 1024.0, 0.0, 1024.0, 0.0, 1.0, 0.0
    # Probabilities become halves, 1 and a quarter, 1 and zero; then half of what is above a half.
    y = ops.quantized_attention(q, k, v, *exact, 1.0, (16, 16, 4, 3), p_grid="log2")
    assert y.flatten().tolist() == [-1.5, 0.0, 1.0]
    y = ops.quantized_attention(q, k, v, *exact, 0.5, (16, 16, 4, 3), p_grid="log2")
    assert y.flatten().tolist() == [-1.5, -0.5, 0.5]


A, ONE = torch.zeros(2, 3, 4, 8), torch.ones(())


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"q": [0.0]}, TypeError, r"q must be a torch\.Tensor, got list"),
        ({"k": A.double()}, TypeError, "k must be float32, float16 or bfloat16"),
        ({"v": A.half()}, TypeError, "q, k and v must have one type"),
        ({"q": A[0]}, ValueError, r"q must have shape \(B, H, tokens, d\), got \(3, 4, 8\)"),
        ({"k": A[:1]}, ValueError, "k and v must have the batch, heads and width of q"),
        ({"v": A[:, :, :2]}, ValueError, "k and v must have the batch, heads and width of q"),
        ({"k": A[:, :, :0], "v": A[:, :, :0]}, ValueError, "heads, keys and their width"),
        ({"q_scale": "1"}, TypeError, "q_scale must be a number or a float32 tensor"),
        ({"v_zero_point": ONE.double()}, TypeError, "v_zero_point must be float32"),
        ({"p_scale": torch.ones(2)}, ValueError, "one for each of the 3 heads"),
        ({"k_scale": torch.ones(3)}, ValueError, "k_scale and k_zero_point must be of one length"),
        ({"v_scale": 0.0}, ValueError, "scale must be positive, got 0.0"),
        ({"bits": 17}, ValueError, "bits must be from 2 to 16, got 17"),
        ({"bits": (4, 4)}, ValueError, "bits must be one number, or four"),
        ({"gradient_scale": (1.0,)}, ValueError, "gradient_scale must be one number, or four"),
        ({"alpha": math.nan}, ValueError, "alpha must be finite"),
        ({"p_grid": "powers"}, ValueError, 'p_grid must be "uniform" or "log2", got \'powers\''),
        ({"bias": torch.ones(3, 4, 5)}, ValueError, r"bias must have shape \(H, N, M\)"),
        ({"bias": 1.0}, TypeError, r"bias must be a torch\.Tensor or None, got float"),
        ({"mask": torch.ones(2, 4)}, ValueError, r"mask must have shape \(W, N, M\)"),
        ({"mask": torch.ones(3, 4, 4)}, ValueError, "a multiple of the masks, got 2 images and 3"),
    ],
)
def test_bad_arguments(backend, changed, error, message):
    names = "q k v q_scale q_zero_point k_scale k_zero_point v_scale v_zero_point p_scale bits"
    given = dict(zip(names.split(), (A, A, A, *[ONE] * 7, 4), strict=True)) | changed
    with ops.backend(backend), pytest.raises(error, match=message):
        ops.quantized_attention(**given)
