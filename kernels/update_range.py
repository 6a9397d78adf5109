"""The running range: a tensor's extrema folded into a moving average, in place."""

import torch
import triton
import triton.language as tl

from synq_fast.kernels._extrema import partial_ranges, reduce_range
from synq_fast.kernels._layout import dense, on_device_of


@triton.jit
def update_kernel(
    low_ptr, high_ptr, count, min_ptr, max_ptr, step_ptr, beta, gain, COUNT: tl.constexpr
):
    """Reduces the partial ranges and moves the state towards them."""
    low, high = reduce_range(low_ptr, high_ptr, count, COUNT)
    tl.store(min_ptr, tl.load(min_ptr) * beta + low * gain)
    tl.store(max_ptr, tl.load(max_ptr) * beta + high * gain)
    tl.store(step_ptr, tl.load(step_ptr) + 1)


def update_range(
    x: torch.Tensor,
    state_min: torch.Tensor,
    state_max: torch.Tensor,
    step: torch.Tensor,
    beta: float,
) -> None:
    """Folds the extrema of `x` into the state; `x` is not empty."""
    x, _ = dense(x.detach(), None)
    with on_device_of(x):
        partials = partial_ranges(x)
        update_kernel[(1,)](
            *partials, state_min, state_max, step, beta, 1 - beta,
            COUNT=partials.padded, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    torch.autograd.graph.increment_version([state_min, state_max, step])
