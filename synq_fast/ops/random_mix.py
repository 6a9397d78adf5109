"""Elements of one tensor or of another, by chance."""

import torch
from torch.overrides import has_torch_function_variadic

from synq_fast.ops._draws import check_keep, check_offset, check_seed, to_seed
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.ops._tensor_checks import check_float_tensor, check_same_device, check_shape
from synq_fast.reference._philox import kept
from synq_fast.reference.random_mix import random_mix as _plain

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]


def _fake(a: Tensor, b: Tensor, seed: Tensor, keep: float, offset: int = 0) -> Tensor:
    check_float_tensor("a", a)
    check_float_tensor("b", b)
    check_shape("b", b, a.shape, "of a")
    if b.dtype != a.dtype:
        raise TypeError(f"b must be of the type of a, {a.dtype}, got {b.dtype}")
    check_same_device("b", b, "a", a)
    check_keep(keep)
    check_seed(seed, "a", a)
    check_offset(offset)
    return torch.empty_like(a)


def _fake_backward(
    grad: Tensor,
    seed: Tensor,
    strides: list[int],
    keep: float,
    of_a: bool,
    of_b: bool,
    offset: int = 0,
) -> Pair:
    check_float_tensor("grad", grad)
    check_seed(seed, "grad", grad)
    check_offset(offset)
    first, second = (
        grad.new_empty_strided(grad.shape, strides) if wanted else grad.new_empty(0)
        for wanted in (of_a, of_b)
    )
    return first, second


def _reference(a: Tensor, b: Tensor, seed: Tensor, keep: float, offset: int = 0) -> Tensor:
    return like(_plain(a, b, keep, seed, offset=offset), a)


def _reference_backward(
    grad: Tensor,
    seed: Tensor,
    strides: list[int],
    keep: float,
    of_a: bool,
    of_b: bool,
    offset: int = 0,
) -> Pair:
    first, second = _fake_backward(grad, seed, strides, keep, of_a, of_b, offset)
    chosen = kept(grad.new_empty_strided(grad.shape, strides), seed, keep, offset)
    if of_a:
        first.copy_(grad.masked_fill(~chosen, 0.0))
    if of_b:
        second.copy_(grad.masked_fill(chosen, 0.0))
    return first, second


# Draws follow memory: `strides` are those of the result. A gradient that is not asked for is empty.
register(
    "random_mix_backward",
    "(Tensor grad, Tensor seed, SymInt[] strides, float keep, bool of_a, bool of_b, "
    "int offset=0) -> (Tensor grad_a, Tensor grad_b)",
    fake=_fake_backward,
    reference=_reference_backward,
    once="random_mix",
)
_op = register(
    "random_mix",
    "(Tensor a, Tensor b, Tensor seed, float keep, int offset=0) -> Tensor",
    fake=_fake,
    reference=_reference,
    gradients={
        "a, b": "random_mix_backward("
        "grad, seed, strides_of(result), keep, needs(a), needs(b), offset)"
    },
)


def random_mix(
    a: torch.Tensor,
    b: torch.Tensor,
    keep: float,
    seed: torch.Tensor | int,
    *,
    offset: int = 0,
) -> torch.Tensor:
    """Takes each element of `a` with a probability, and else that of `b`.

    Draws are not stored but made again for the gradient, which goes to the tensor that an element
    came from. They are the same on every backend: with i an element's place in the memory of
    `torch.empty_like(a)`, plus `offset`, and r the four 32-bit words of Philox 4x32-10 for the
    counter i // 4 and the key `seed`, the element is that of `a` where `r[i % 4] >> 8` is below
    `round(keep * 2^24)`. As they follow memory, a channels_last image has its draws at other pixels
    than a contiguous one. `fake_quantize_learned` draws alike.

    Args:
        a: Any shape; float16, bfloat16, float32 or float64.
        b: Of the same shape, type and device.
        keep: The probability of an element of `a`, from 0 to 1.
        seed: An int of 64 bits, or an int64 tensor with one element on a's device, which is read
            there, so that a recorded CUDA graph draws anew when it is changed between replays. It
            must be the same when the gradient is computed.
        offset: Where `a` is a part of a batch, the place of its first element in the memory of the
            whole: the rows before it times the elements of a row. Contiguous and channels_last
            parts then draw what they would draw as rows of the whole.

    Returns:
        A tensor with the shape, type and layout of `a`. The kernels know no second derivative.

    Raises:
        TypeError: A tensor is of another type than said above, or `keep`, `seed` or `offset` is no
            number.
        ValueError: The shapes or devices differ, or `keep`, `seed` or `offset` is out of range.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: QDrop (Wei et al., ICLR 2022), whose blocks are reconstructed from a mixture of the
    quantized and the full-precision network's inputs.
    """
    if has_torch_function_variadic(a, b, seed):
        overriding: Tensor = overridden(random_mix, locals())
        return overriding
    op = _op.on(a, b)
    if not isinstance(seed, Tensor):
        check_float_tensor("a", a)
        seed = to_seed(seed, a.device)
    if op is None:
        _op.check(a, b, seed, keep, offset)
        return _plain(a, b, keep, seed, offset=offset)
    try:
        result: Tensor = op(a, b, seed, keep, offset)
    except Exception as error:
        _op.refuse(error, a, b, seed, keep, offset)
    return result
