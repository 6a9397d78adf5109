"""A layer on int8 codes, with its quantizer: ours on a GPU, oneDNN's on a CPU, and in float."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from synq_fast.deployment.execution import int8_reason, product_reason, saturates
from synq_fast.deployment.frozen import FrozenLinear, FrozenQuantizer
from synq_fast.deployment.int8_modules import Int8Layer
from synq_fast.deployment.product_modules import ProductLayer

from . import columns, harness
from .roofline_int8 import LAYERS

# Rows, columns and depth of DeiT-Tiny and of ResNet-50's 1 x 1 convolutions; eight images there.
SHAPES = harness.sizes(
    cpu=[(1576, 576, 192), (1576, 768, 192), (6272, 256, 64), (1568, 128, 512)],
    cuda=[layer[1:] for layer in LAYERS],
)
PLAIN, BARE = "float linear", "torch._int_mm, sums alone"


def parts_of(rows: int, width: int, depth: int) -> tuple[FrozenLinear, FrozenQuantizer, Tensor]:
    """A layer of 8-bit weights, a grid of 8 bits for its input and result, and codes of uint8."""
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(-127, 128, (width, depth), generator=generator, dtype=torch.int8)
    codes = torch.randint(0, 256, (rows, depth), generator=generator, dtype=torch.uint8)
    grid = FrozenQuantizer(torch.tensor(0.02), torch.tensor(128), 8)
    one, scale = torch.ones(width), torch.full((width,), 0.5 / depth)
    bias = torch.zeros(width, dtype=torch.int32)
    return FrozenLinear(8, stored, 0 * one, one, scale, bias, grid.scale, 255), grid, codes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_int8_product(
    shape: tuple[int, int, int], compare: Callable[..., harness.Comparison]
) -> None:
    """Codes in and codes out beside floating point in its fastest type, and sums without more."""
    rows, width, depth = shape
    layer, grid, codes = parts_of(*shape)
    on_gpu = harness.DEVICE.type == "cuda"
    reason = product_reason(harness.DEVICE) if on_gpu else int8_reason()
    if reason is None and not on_gpu and saturates():
        reason = "8-bit sums saturate without VNNI"
    if reason is not None:
        pytest.skip(reason)
    x = (codes.to(torch.int16) - 128).to(torch.int8) if on_gpu else codes
    numbers = (codes.float() - 128) * grid.scale
    expected = grid.codes(layer(numbers))
    x, numbers, layer, grid = (v.to(harness.DEVICE) for v in (x, numbers, layer, grid))
    ours: torch.nn.Module
    if on_gpu:
        ours = ProductLayer(layer, grid, output=grid, bound=None).to(harness.DEVICE)
        assert torch.equal(ours(x).cpu().short() + 128, expected), "codes differ"
    else:
        ours = Int8Layer(layer, grid, x.shape, output=grid, bound=None)
        assert (ours(x) != expected).float().mean() < 1e-3, "codes differ"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    title = f"{PLAIN}, {str(dtype).removeprefix('torch.')}"
    weight, bias = layer.weight().to(dtype), layer.float_bias().to(dtype)
    found: dict[str, Callable[[], object]] = {
        "ours": columns.call(ours, x),
        title: columns.call(functional.linear, numbers.to(dtype), weight, bias),
    }
    omitted = {}
    if on_gpu and rows > 16 and depth % 8 == width % 8 == 0:
        found[BARE] = columns.call(torch._int_mm, x, layer.codes().T)
    elif on_gpu:
        omitted[BARE] = "it takes more than 16 rows and multiples of 8"
    moved = rows * depth + width * depth + rows * width
    found["copy of as many bytes"] = columns.copy_column(moved)
    compare(
        f"({rows}, {depth}) by ({width}, {depth})",
        found,
        ours="ours",
        copy="copy of as many bytes",
        bytes_moved=moved,
        omitted=omitted,
    )
