"""Every specialisation of every Triton kernel compiles for one GPU, fast ones and rare ones alike.

Triton compiles anew where an argument is 1, where it is a multiple of 16 and for each dtype: sizes
with 1 in every place, odd and aligned ones, dense both ways, meet every kernel. Minutes of work.
"""

from importlib.metadata import version

import pytest
import torch

from tests.compile.ptx_checks import resources
from tests.compile.test_triton_channel_moments import launch_all as launch_moments
from tests.compile.test_triton_compile import (
    DTYPES,
    Compiler,
    compiler,
    launch_affine,
    pytestmark,
)
from tests.compile.test_triton_distillation_loss import launch_all as launch_distillation
from tests.compile.test_triton_fused_quantizers import launch_all as launch_fused
from tests.compile.test_triton_grad_cam import launch_all as launch_cams
from tests.compile.test_triton_heads import launch_all as launch_heads
from tests.compile.test_triton_pack_codes import launch_all as launch_packing
from tests.compile.test_triton_ranges import launch_all as launch_ranges

__all__ = ["compiler"]  # used by pytest

pytestmark = [*pytestmark, pytest.mark.slow]

ALIGNED, ODD = (4, 32, 16, 32), (3, 5, 7, 9)
SHAPES = [
    ALIGNED,
    ODD,
    *((*shape[:place], 1, *shape[place + 1 :]) for shape in (ALIGNED, ODD) for place in range(4)),
    (1, 1, 1, 1),
    (1, 1, 1, 64),
    (64, 1, 1, 1),
    (33, 7, 1, 1),
    (2, 32, 64, 64),
]
# None, within a counter, a multiple of 16, and beyond 32 bits.
OFFSETS = (0, 1, 3, 4, 16, 2**34, 2**34 + 1)
# For occupancy, which is tuned with one version of the compiler; another has its own ways.
MAXIMUM_REGISTERS = 128 if version("triton").startswith("3.6.") else 255
# Tiles of a product, or of a sum over pairs, live in registers.
LARGE = {
    *("axis_kernel", "similarity_kernel", "direction_kernel", "density_kernel", "slope_kernel"),
    *("head_pairs_kernel", "head_gradient_kernel"),
}
LARGEST = 255


def launch_quantizers(x: torch.Tensor) -> None:
    """Calls the launchers of given, learned and found ranges."""
    from synq_fast import kernels

    one, seed = torch.ones(x.shape[1]), torch.tensor(0)
    for offset in OFFSETS:
        kernels.random_mix(x, x, seed, 0.5, offset)
        for wanted in ((True, True), (True, False), (False, True)):
            kernels.random_mix_backward(x, seed, x.stride(), 0.5, *wanted, offset)
    for bound, axis in ((one[0], None), (one, 1)):
        kernels.fake_quantize(x, bound, bound, 4, axis, None)
        kernels.fake_quantize_backward(x, x, bound, bound, 4, axis, None)
        for bits in (4, 16):
            kernels.quantize_codes(x, bound, bound, bits, axis, None)
        for symmetric in (False, True):
            kernels.fake_quantize_dynamic(x, 4, axis, None, symmetric)
        kernels.fake_quantize_learned(x, bound, bound, 4, axis)
        kernels.fake_quantize_learned_backward(x, x, bound, bound, 4, axis, 0.5)
        for keep, offset in ((2**-24, 0), (0.5, 0), (0.3, 0), *((0.5, o) for o in OFFSETS[1:])):
            chance = seed, 4, axis, keep, 0.5, offset
            kernels.fake_quantize_learned_dropped(x, bound, bound, *chance)
            kernels.fake_quantize_learned_dropped_backward(x, x, bound, bound, *chance)
        kernels.relu_fake_quantize(x, bound, bound, 4, axis, None)
        for clip in (False, True):
            kernels.relu_fake_quantize_backward(x, x, bound, bound, 4, axis, 6.0, clip)
    launch_affine(x)
    for axis in range(4):
        kernels.search_range(x, 4, 80, 2.4, axis)
    if x.dtype == torch.float32:
        for grid, axis in (((one[:1], one[:1]), None), ((one, one), 1)):
            arguments = x, x.to(torch.int8), *grid, one[0], 4, axis
            kernels.soft_round(*arguments)
            for gradients in ((x, one[0]), (None, one[0]), (x, None)):
                kernels.soft_round_backward(*gradients, *arguments)


def launch_losses(x: torch.Tensor) -> None:
    """Calls the launchers of the losses on statistics and similarities, and of the filter."""
    from synq_fast import kernels

    scale, stored = torch.zeros(()), torch.zeros(x.shape[1])
    _, _, statistics = kernels.bn_statistics_loss(x, stored, stored)
    for of_mean, of_var in ((scale, scale), (None, scale), (scale, None)):
        kernels.bn_statistics_loss_backward(of_mean, of_var, x, statistics)
    loss, rows = kernels.bn_statistics_losses([x, x], [stored] * 2, [stored] * 2, [1.0, 0.5])
    kernels.bn_statistics_losses_backward(loss, [x, x], rows, [1.0, 0.5])
    if x.is_contiguous():
        kernels.low_pass(x, 4.0, "gaussian", 2, "auto")
        tokens = x.flatten(2)
        kernels.patch_similarity_entropy(tokens, 10, 0.01, 1e-4)
        kernels.patch_similarity_entropy_with_gradient(tokens, 10, 0.01, 1e-4)


@pytest.mark.parametrize("compiler", [90], ids="sm_{}".format, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_specialisation(compiler: Compiler, dtype: torch.dtype) -> None:
    for launch in (launch_moments, launch_distillation, launch_cams, launch_heads, launch_ranges):
        launch(dtype)
    launch_packing(range(2, 9), [(64, 4608), (33, 27), (16, 16 * 16 + 1), (1, 4101), (1, 1)])
    for shape in SHAPES:
        image = torch.zeros(shape, dtype=dtype)
        for x in (image, image.to(memory_format=torch.channels_last)):
            launch_quantizers(x)
            launch_losses(x)
            launch_fused(x)
    log = compiler.log.getvalue()
    compiled = resources(log)
    assert len(compiled) >= 150
    for kernel in compiled:
        limit = LARGEST if kernel.name in LARGE else MAXIMUM_REGISTERS
        assert kernel.spilled_bytes == 0, kernel
        assert kernel.registers <= limit, kernel
    # Neither a stack frame nor local memory.
    assert log.count(" 0 bytes stack frame") == log.count("bytes stack frame") == len(compiled)
    for name, ptx in compiler.ptx:
        assert not any(word in ptx for word in ("ld.local", "st.local", ".local .")), name
