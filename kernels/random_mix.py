"""Elements of one tensor or of another by chance, and the parts of the gradient."""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._block_shapes import block_shape
from synq_fast.kernels._layout import dense, laid_out_as, on_device_of
from synq_fast.kernels._philox import Chance, kept_block

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_words(x: torch.Tensor) -> torch.Tensor:
    """Returns the bits of a tensor's elements, which is all that matters here."""
    return x.view(WORDS[x.element_size()])


@triton.jit
def mix_kernel(
    a_ptr, b_ptr, y_ptr, seed_ptr, elements, threshold, offset,
    QUADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program handles BLOCK consecutive elements."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    kept = kept_block(start, tl.load(seed_ptr), threshold, offset, QUADS, BLOCK)
    # Whole blocks carry no mask: one that ends at an odd place would split the 128-bit accesses.
    if start + BLOCK <= elements:
        y = tl.where(kept, tl.load(a_ptr + offsets), tl.load(b_ptr + offsets))
        tl.store(y_ptr + offsets, y)
    else:
        mask = offsets < elements
        a = tl.load(a_ptr + offsets, mask=mask)
        b = tl.load(b_ptr + offsets, mask=mask)
        tl.store(y_ptr + offsets, tl.where(kept, a, b), mask=mask)


@triton.jit
def parts_kernel(
    gradient_ptr, a_ptr, b_ptr, seed_ptr, elements, threshold, offset,
    OF_A: tl.constexpr, OF_B: tl.constexpr, QUADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Divides the gradient; each part is written if wanted."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)
    kept = kept_block(start, tl.load(seed_ptr), threshold, offset, QUADS, BLOCK)
    if start + BLOCK <= elements:
        gradient = tl.load(gradient_ptr + offsets)
        zero = tl.zeros_like(gradient)
        if OF_A:
            tl.store(a_ptr + offsets, tl.where(kept, gradient, zero))
        if OF_B:
            tl.store(b_ptr + offsets, tl.where(kept, zero, gradient))
    else:
        mask = offsets < elements
        gradient = tl.load(gradient_ptr + offsets, mask=mask)
        zero = tl.zeros_like(gradient)
        if OF_A:
            tl.store(a_ptr + offsets, tl.where(kept, gradient, zero), mask=mask)
        if OF_B:
            tl.store(b_ptr + offsets, tl.where(kept, zero, gradient), mask=mask)


def _launch(kernel, tensors: tuple[torch.Tensor, ...], chance: Chance, **options: bool) -> None:
    count = tensors[0].numel()
    if count > 0:
        words = [as_words(x) for x in tensors]
        block, warps = block_shape(kernel.fn.__name__, words[0].dtype)
        with on_device_of(tensors[0]):
            kernel[(triton.cdiv(count, block),)](
                *words, chance.seed, count, chance.threshold, chance.offset,
                **options, QUADS=chance.by_quads, BLOCK=block, num_warps=warps,
                enable_fp_fusion=False,
            )  # fmt: skip


def random_mix(
    a: torch.Tensor, b: torch.Tensor, seed: torch.Tensor, keep: float, offset: int = 0
) -> torch.Tensor:
    """Returns the mixture in the layout of `a`."""
    a, _ = dense(a, None)
    y = torch.empty_like(a)
    _launch(mix_kernel, (a, laid_out_as(b, a), y), Chance(seed, keep, offset))
    return y


def random_mix_backward(
    grad: torch.Tensor,
    seed: torch.Tensor,
    strides: list[int],
    keep: float,
    of_a: bool,
    of_b: bool,
    offset: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gradients of both tensors, each empty unless wanted."""
    first = grad.new_empty_strided(grad.shape, strides)
    second = torch.empty_like(first) if of_b else grad.new_empty(0)
    tensors = laid_out_as(grad, first), first, second
    _launch(parts_kernel, tensors, Chance(seed, keep, offset), OF_A=of_a, OF_B=of_b)
    return first if of_a else grad.new_empty(0), second
