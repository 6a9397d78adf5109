"""What `benchmarks.block_shapes` asks of kernels: calls on large tensors, and what they move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = {"rows": torch.contiguous_format, "columns": torch.channels_last}
# The words that elements of random_mix are.
WORDS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.float64: torch.int64}
IMAGES = (256, 64, 56, 56)
# Sizes and beginnings of draws with which nothing is a multiple of anything.
ODD, ODD_PLACES = (3, 5, 7, 9), (1, 3)

Call = tuple[Callable[[], object], int]


@dataclass(frozen=True)
class Case:
    """A kernel of the table on one type and layout.

    Attributes:
        kernel: Its name in the table; the first word is the Triton function's.
        dtype: As the launcher asks for it.
        layout: "flat", "rows" or "columns".
        calls: Of launchers, each with the bytes that the kernel moves in it.
        rare: Calls that need more registers, whose time does not matter.
    """

    kernel: str
    dtype: torch.dtype
    layout: str
    calls: tuple[Call, ...]
    rare: tuple[Callable[[], object], ...] = ()

    @property
    def key(self) -> tuple[str, torch.dtype, str]:
        """Returns the case's place in the table."""
        return self.kernel, self.dtype, self.layout


def cases(kernels: Any, device: torch.device) -> Iterator[Case]:
    """Yields every kernel of the table in each type and layout; values of tensors do not matter.

    `kernels` is the package of launchers.
    """
    for dtype in FLOATS:
        for layout, found in (
            ("flat", _elements(kernels, dtype, device)),
            *((layout, _channels(kernels, dtype, layout, device)) for layout in LAYOUTS),
        ):
            for kernel, (calls, rare) in found.items():
                yield Case(kernel, dtype, layout, calls, rare)
    for dtype, words in WORDS.items():
        x = torch.zeros(IMAGES, dtype=dtype, device=device)
        seed = torch.zeros((), dtype=torch.int64, device=device)
        mix = partial(kernels.random_mix, x, x, seed, 0.5)
        odd = tuple(partial(mix, place) for place in ODD_PLACES)
        yield Case("mix_kernel", words, "flat", ((mix, 3 * x.nbytes),), odd)
        parts = partial(kernels.random_mix_backward, x, seed, x.stride(), 0.5, True, True)
        odd = tuple(partial(parts, place) for place in ODD_PLACES)
        yield Case("parts_kernel", words, "flat", ((parts, 3 * x.nbytes),), odd)
    small = torch.zeros((1024, 16, 7, 7), device=device)
    maps = partial(kernels.grad_cam, small, small, None, 0, 224, 224, 1e-10, 1e-10)
    yield Case("map_kernel", torch.float32, "flat", ((maps, 4 * 1024 * 224 * 224),))
    codes = torch.zeros((4096, 16384), dtype=torch.int8, device=device)
    packed = torch.zeros((4096, 8192), dtype=torch.uint8, device=device)
    moved = codes.nbytes + packed.nbytes
    pack, unpack = partial(kernels.pack_codes, codes, 4), partial(kernels.unpack_codes, packed, 4)
    yield Case("pack_words_kernel", torch.int8, "flat", ((pack, moved),))
    yield Case("unpack_words_kernel", torch.int8, "flat", ((partial(unpack, 16384), moved),))


Found = dict[str, tuple[tuple[Call, ...], tuple[Callable[[], object], ...]]]


def _elements(kernels: Any, dtype: torch.dtype, device: torch.device) -> Found:
    zeros = partial(torch.zeros, device=device)
    x, one, each = zeros(IMAGES, dtype=dtype), zeros(()), zeros(IMAGES[1])
    seed, nbytes = one.long(), x.nbytes
    logits, gradients = zeros((16384, 1000), dtype=dtype), zeros((2, 16384, 1000))
    photos, norms = zeros((256, 3, 224, 224), dtype=dtype), zeros((1, 4))
    heads, similarities = zeros((256, 6, 197, 64), dtype=dtype), zeros((256, 6, 4, 64))
    odd, some = zeros(ODD, dtype=dtype), zeros(ODD[1])
    dropped, learned = kernels.fake_quantize_learned_dropped, (seed, 4, 1, 0.5, 1.0)
    activation = kernels.activation_fake_quantize
    similarity = partial(kernels.structural_similarity_loss_backward, one, heads, heads)
    return {
        "tensor_kernel": (
            (
                (partial(kernels.fake_quantize, x, one, one, 4, None, None), 2 * nbytes),
                (
                    partial(kernels.fake_quantize_backward, x, x, one, one, 4, None, None),
                    3 * nbytes,
                ),
            ),
            (partial(kernels.fake_quantize_minifloat, odd, one, one, 8, None),),
        ),
        "dropped_kernel": (
            (
                (partial(dropped, x, one, one, seed, 4, None, 0.5, 1.0), 2 * nbytes),
                (partial(dropped, x, each, each, *learned), 2 * nbytes),
            ),
            # Draws from an odd place are made one by one.
            tuple(partial(dropped, odd, some, some, *learned, place) for place in ODD_PLACES),
        ),
        "log_kernel": (
            (
                (partial(kernels.fake_quantize_log, x, one, 4, None), 2 * nbytes),
                (partial(kernels.fake_quantize_log, x, each, 4, 1), 2 * nbytes),
            ),
            (partial(kernels.fake_quantize_log, odd, some, 4, 1),),
        ),
        "activation_kernel": (
            ((partial(activation, x, one, one, 0, 4, False), 2 * nbytes),),
            tuple(partial(activation, odd, one, one, function, 8, True) for function in range(3)),
        ),
        "combine_kernel": (
            (
                (
                    partial(kernels.distillation_loss_backward, one, one, gradients, logits),
                    gradients.nbytes + logits.nbytes,
                ),
            ),
            (),
        ),
        "variation_backward_kernel": (
            ((partial(kernels.total_variation_backward, one, photos, norms), 2 * photos.nbytes),),
            (),
        ),
        "similarity_gradient_kernel": (
            ((partial(similarity, None, similarities), 3 * heads.nbytes),),
            (partial(similarity, zeros((256, 6, 197)), similarities),),
        ),
    }


def _channels(kernels: Any, dtype: torch.dtype, layout: str, device: torch.device) -> Found:
    zeros, last = partial(torch.zeros, device=device), layout == "columns"
    x, one, each = zeros(IMAGES, dtype=dtype), zeros(()), zeros(IMAGES[1])
    x, nbytes = x.to(memory_format=LAYOUTS[layout]), x.nbytes
    affine, grid, mean = (x, each, each), (one, one, 4), zeros(IMAGES[:2])
    statistics = zeros((3, IMAGES[1]), dtype=torch.float64)
    odd = zeros(ODD, dtype=dtype).to(memory_format=LAYOUTS[layout])
    some, more = zeros(ODD[1]), (one, one, 4, 6.0, True, False)
    weights, coarse, maps = zeros((256, 2048)), zeros((256, 1, 7, 7)), zeros((256, 1, 224, 224))
    forward = kernels.affine_relu_fake_quantize
    backward = kernels.affine_relu_fake_quantize_backward
    long = zeros((300, *ODD[1:3], 45), dtype=dtype).to(memory_format=LAYOUTS[layout])
    spread, options = kernels.grad_cam_backward, (0, 1e-10, 1e-10, last, dtype)
    return {
        "channel_kernel": (
            (
                (partial(kernels.fake_quantize, x, each, each, 4, 1, None), 2 * nbytes),
                (partial(kernels.fake_quantize_backward, x, x, each, each, 4, 1, None), 3 * nbytes),
                (partial(forward, *affine, None, *grid, None), 2 * nbytes),
            ),
            (
                partial(kernels.fake_quantize_minifloat, odd, some, some, 8, 1),
                partial(backward, odd, odd, some, some, None, *more, False),
            ),
        ),
        "channel_kernel with residual": (
            (
                (partial(forward, *affine, x, *grid, None), 3 * nbytes),
                (partial(backward, x, *affine, x, *grid, None, True, False, True), 5 * nbytes),
            ),
            (partial(backward, odd, odd, some, some, odd, *more, True),),
        ),
        "ranges_kernel": (
            ((partial(kernels.fake_quantize_dynamic, x, 4, 1, None, False), nbytes),),
            (partial(kernels.fake_quantize_dynamic, long, 4, 1, None, False),),
        ),
        "gradient_kernel": (
            ((partial(kernels.bn_statistics_loss_backward, one, one, x, statistics), 2 * nbytes),),
            (),
        ),
        "moments_backward_kernel": (
            ((partial(kernels.channel_moments_backward, mean, mean, x, mean), 2 * nbytes),),
            (),
        ),
        "spread_kernel": (
            ((partial(spread, maps, weights, coarse, *options), 256 * 2048 * 49 * dtype.itemsize),),
            (partial(spread, maps[:3], weights[:3, :5], zeros((3, 1, 7, 9)), *options),),
        ),
    }
