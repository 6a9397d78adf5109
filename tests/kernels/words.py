"""A kernel that writes the words of our Philox and of Triton's own."""

import triton
from triton import language as tl

from synq_fast.kernels._philox import philox


@triton.jit
def words_kernel(quad_ptr, seed_ptr, ours_ptr, theirs_ptr, BLOCK: tl.constexpr):
    """Each result is (4, BLOCK)."""
    place = tl.arange(0, BLOCK)
    quad = tl.load(quad_ptr + place)
    seed = tl.load(seed_ptr)
    a, b, c, d = philox(quad, seed)
    tl.store(ours_ptr + place, a.to(tl.int64))
    tl.store(ours_ptr + BLOCK + place, b.to(tl.int64))
    tl.store(ours_ptr + 2 * BLOCK + place, c.to(tl.int64))
    tl.store(ours_ptr + 3 * BLOCK + place, d.to(tl.int64))
    a, b, c, d = tl.randint4x(seed, quad.to(tl.uint32))
    tl.store(theirs_ptr + place, a.to(tl.int64))
    tl.store(theirs_ptr + BLOCK + place, b.to(tl.int64))
    tl.store(theirs_ptr + 2 * BLOCK + place, c.to(tl.int64))
    tl.store(theirs_ptr + 3 * BLOCK + place, d.to(tl.int64))
