"""The ops that are predicted: what their kernels move, before and after they were last redone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .gpu_model import Launch

FLOAT, HALF = "f", "13__nv_bfloat16"
ELEMENTS = 256 * 64 * 56 * 56


@dataclass(frozen=True)
class Case:
    """What is predicted: an op on one input, as the launches of two versions of the code.

    Of an op that had no kernel of its own `before` is empty.
    """

    name: str
    before: tuple[Launch, ...]
    after: tuple[Launch, ...]

    @property
    def needed(self) -> float:
        """Bytes that the op has to move, of the version that moves least."""
        versions = [launches for launches in (self.before, self.after) if launches]
        return min(sum(x.moved * x.times for x in launches) for launches in versions)


def _statistics(kind: str, size: int) -> Case:
    old, new = ("Li4", "Li4") if size == 4 else ("Li8", "Li4")
    items = 2 * 64 if size == 4 else 64
    nbytes = ELEMENTS * size
    name = "bn_statistics_loss"
    return Case(
        f"{name} (256,64,56,56) {'float32' if size == 4 else 'bfloat16'}",
        (
            Launch(name, f"column_moments_kernelI{kind}{old}E", nbytes, items),
            Launch(name, "finish_kernel", rounds=2 * 64 / 4),
        ),
        (
            Launch(name, f"column_moments_kernelI{kind}{new}E", nbytes, 2048),
            Launch(name, "finish_kernel", rounds=2 * 1024 / 32 / 8),
            Launch(name, "total_kernel", rounds=1),
        ),
    )


def _network() -> Case:
    """The BatchNorm inputs of ResNet-20, batch 256: channels, side, layers, items then and now."""
    layers = ((16, 32, 7, 64, 512), (32, 16, 6, 64, 256), (64, 8, 6, 128, 128))
    name, kernel = "bn_statistics_loss", "column_moments_kernelIfLi4E"
    before = [
        Launch(name, kernel, 256 * c * side**2 * 4, items, busy=0.5 if c == 16 else 1, times=count)
        for c, side, count, items, _ in layers
    ]
    moved = sum(256 * c * side**2 * 4 * count for c, side, count, *_ in layers)
    return Case(
        "bn_statistics_losses, ResNet-20 at 256, float32",
        (*before, Launch(name, "finish_kernel", rounds=32, times=19), Launch(name, "total_kernel")),
        (
            Launch(name, kernel, moved, sum(count * new for _, _, count, _, new in layers)),
            Launch(name, "finish_kernel", rounds=2 * 512 / 32 / 8),
            Launch(name, "total_kernel", rounds=2),
        ),
    )


def _statistics_gradient(kind: str, size: int) -> Case:
    count = "Li4E" if size == 4 else "Li8E"
    nbytes = 2 * ELEMENTS * size
    return Case(
        f"bn_statistics_loss backward (256,64,56,56) {'float32' if size == 4 else 'bfloat16'}",
        (Launch("bn_statistics_loss", f"15gradient_kernelI{kind}{count}", nbytes, 1 << 20),),
        (Launch("bn_statistics_gradient", f"column_gradient_kernelI{kind}{count}", nbytes, 2048),),
    )


def _moments(kind: str, size: int) -> Case:
    name, nbytes = "channel_moments", ELEMENTS * size
    finish = Launch(name, "finish_moments_kernel", rounds=2)
    return Case(
        f"{name} (256,64,56,56) {'float32' if size == 4 else 'bfloat16'}",
        (Launch(name, f"column_moments_kernelI{kind}E", nbytes, 2048), finish),
        (Launch(name, f"column_moments_kernelI{kind}Li4E", nbytes, 2048), finish),
    )


def _sums(operation: str, source: str, kind: str, size: int, tensors: int) -> Case:
    kernel = rf"column_sums_kernelI\w*{operation}I{kind}EE"
    nbytes = tensors * ELEMENTS * size
    finish = Launch(source, rf"finish_sums_kernelI\w*{operation}I{kind}EE", rounds=4)
    return Case(
        f"{operation} (256,64,56,56) {'float32' if size == 4 else 'bfloat16'}",
        (Launch(source, kernel + "E", nbytes, 2048), finish),
        (Launch(source, kernel + "Li4E", nbytes, 2048), finish),
    )


def _maps(layout: str, weighting: int, images: int = 256) -> Case:
    last = layout == "channels_last"
    nbytes = 2 * images * 2048 * 49 * 4
    # Grad-CAM++ used to read the activations twice.
    old = nbytes * (1.5 if weighting == 1 else 1)
    flags = "Lb1ELb1E" if last else "Lb0ELb0E"
    form = "column" if last else "row"
    kernel = rf"{form}_coarse_kernelIf\w*WeightingE{weighting}ELj2E"
    kernel += "Lb1E" if last else "Lj4E"
    name = ("grad_cam", "grad_cam_plus_plus")[weighting]
    # Of 49 positions a lane of the old kernel had two at once in one half of its work, four in the
    # other; with channels innermost a pack and a half between barriers, then four.
    busy, in_flight = (1.0, 30) if last else (49 / 64, 10.7)
    shares = 8 if images == 256 else 32
    return Case(
        f"{name} ({images},2048,7,7) float32 {layout}, without the resizing",
        (
            Launch(
                "grad_cam", f"13coarse_kernelIf{flags}", old, images, 1024, busy,
                in_flight=in_flight,
            ),
        ),
        (
            Launch("grad_cam", kernel, nbytes, images * shares, busy=49 / 64),
            Launch("grad_cam", "join_kernel", rounds=shares / 4),
        ),
    )  # fmt: skip


FILTERED = ((256, 224), (64, 224), (256, 32))
CACHE = 38 << 20  # bytes between two passes that stay in the L2 cache
# Instructions of all warps for a tile's loads, folds and stores, a value; counted by hand.
BESIDE = {"before": 6500 / 7168, "after": 4400 / 7168}


def _low_pass(images: int, side: int, kind: str, size: int) -> Case:
    """Two passes over contiguous images through float32; sides of a multiple of four."""
    count = 3 * images * side**2
    tiles, middle = count // side // 32, 4 * count
    half = side // 2
    parts = (half // 2 + 1, (half - 1) // 2, (half + 1) // 2, half // 2)
    turns = {
        rows: sum(math.ceil(part / rows) * math.ceil(part / 8) for part in parts)
        for rows in (16, 32)
    }

    def launches(code: str, rows: int, chunks: int, table: int) -> tuple[Launch, ...]:
        # The last chunk may be smaller: as if all were alike.
        stays = middle // chunks <= CACHE
        return tuple(
            Launch(
                "low_pass", rf"15low_pass_kernelI{source}{target}Li32E",
                (size * count + (0 if stays else middle)) / chunks, math.ceil(tiles / chunks),
                times=chunks, cached=middle / chunks if stays else 0, turns=turns[rows],
                beside=round(BESIDE[code] * 32 * side),
                shared_bytes=4 * ((side + 8) * 40 + table),
            )
            for source, target in ((kind, FLOAT), (FLOAT, kind))
        )  # fmt: skip

    chunks = math.ceil(3 * images / (CACHE // (4 * side**2)))
    return Case(
        f"low_pass ({images},3,{side},{side}) {'float32' if size == 4 else 'bfloat16'} contiguous",
        launches("before", 16, 1, side + 34),
        launches("after", 32, chunks, 0),
    )


def _patch_products(images: int, tokens: int, channels: int) -> tuple[Case, Case]:
    """Unit tokens with themselves, and the gradients in similarities with unit tokens."""
    name, tile, depth = "patch_similarity_entropy", 64, 32
    rows, columns = math.ceil(tokens / tile), math.ceil(channels / tile)
    unit, similarity = 4 * images * tokens * channels, 4 * images * tokens**2

    def launch(kernel: str, tiles: int, length: int, moved: int, result: int) -> Launch:
        turns = math.ceil(length / depth)
        # Of all four warps. Moving a turn's panels takes 60 instructions of each, counted by hand,
        # and a result 10.
        return Launch(
            name, kernel, moved, images * tiles, 128, turns=4 * turns * depth // 8,
            cached=images * tiles * turns * 2 * tile * depth * 4,
            beside=4 * (60 * turns + 10 * result),
        )  # fmt: skip

    shape = f"({images},{tokens},{channels}) float32"
    return (
        Case(
            f"{name} {shape}, similarities",
            (),
            (
                launch(
                    "similarities_kernel", rows * (rows + 1) // 2, channels, unit + similarity, 64
                ),
            ),
        ),
        Case(
            f"{name} {shape}, gradients",
            (),
            (launch("gradients_kernel", rows * columns, tokens, 2 * unit + similarity, 32),),
        ),
    )


def cases() -> list[Case]:
    """Returns what is predicted: channels_last where nothing else is said."""
    types = ((FLOAT, 4), (HALF, 2))
    relu = "relu_fake_quantize"
    return [
        *(_statistics(*kind) for kind in types),
        _network(),
        *(_statistics_gradient(*kind) for kind in types),
        *(_moments(*kind) for kind in types),
        *(_sums("ResidualReluGradients", relu, *kind, 5) for kind in types),
        *(_sums("LearnedGradient", "fake_quantize_learned", *kind, 3) for kind in types),
        _maps("contiguous", 0),
        _maps("channels_last", 0),
        _maps("contiguous", 0, 32),
        _maps("channels_last", 0, 32),
        _maps("contiguous", 1),
        _maps("channels_last", 1),
        *(_low_pass(*shape, *kind) for shape in FILTERED for kind in types),
        *_patch_products(256, 196, 384),
        *_patch_products(32, 196, 192),
    ]
