"""The table of block shapes holds what launchers ask for, and nothing else. Nothing is compiled."""

import os

import pytest
import torch

from tests.compile.test_triton_channel_moments import launch_all as launch_moments
from tests.compile.test_triton_compile import DTYPES
from tests.compile.test_triton_distillation_loss import launch_all as launch_distillation
from tests.compile.test_triton_fused_quantizers import launch_all as launch_fused
from tests.compile.test_triton_grad_cam import launch_all as launch_cams
from tests.compile.test_triton_heads import launch_all as launch_heads
from tests.compile.test_triton_pack_codes import launch_all as launch_packing
from tests.compile.test_triton_specializations import ALIGNED, launch_losses, launch_quantizers

triton = pytest.importorskip("triton", reason="Triton is not installed")

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: launchers compute"
)


class Asked(dict):
    """A table that notes which of its entries are read."""

    def __init__(self, shapes: dict) -> None:
        super().__init__(shapes)
        self.keys_read: set = set()

    def __getitem__(self, key):
        self.keys_read.add(key)
        return super().__getitem__(key)


def launch_everything() -> None:
    from synq_fast import kernels

    launch_packing([4], [(64, 4608)])
    for dtype in DTYPES:
        for launch in (launch_moments, launch_distillation, launch_cams, launch_heads):
            launch(dtype)
        image = torch.zeros(ALIGNED, dtype=dtype)
        for x in (image, image.to(memory_format=torch.channels_last)):
            launch_quantizers(x)
            launch_losses(x)
            launch_fused(x)
            kernels.total_variation_backward(torch.ones(()), x, torch.ones(1, 4))
            one, scale = torch.ones(()), torch.ones(x.shape[1])
            kernels.fake_quantize_log(x, scale, 4, 1)
            kernels.activation_fake_quantize(x, one, one, 0, 4, False)
    wide = torch.zeros(8, dtype=torch.float64)
    seed = torch.zeros((), dtype=torch.int64)
    kernels.random_mix(wide, wide, seed, 0.5)
    kernels.random_mix_backward(wide, seed, wide.stride(), 0.5, True, True)


def test_the_table_holds_what_launchers_ask_for(monkeypatch) -> None:
    from synq_fast.kernels import _block_shapes

    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", lambda *_, **__: None)
    asked = Asked(_block_shapes.SHAPES)
    monkeypatch.setattr(_block_shapes, "SHAPES", asked)
    launch_everything()
    assert asked.keys_read == set(asked)


def test_the_cases_are_those_of_the_table() -> None:
    from benchmarks.block_shape_cases import cases
    from synq_fast import kernels
    from synq_fast.kernels._block_shapes import SHAPES

    found = [case.key for case in cases(kernels, torch.device("meta"))]
    assert len(found) == len(set(found)) and set(found) == set(SHAPES)


def test_a_kernel_that_the_table_lacks() -> None:
    from synq_fast.kernels._block_shapes import block_shape

    with pytest.raises(LookupError, match=r"no shape of tensor_kernel for torch.float64 .*run `py"):
        block_shape("tensor_kernel", torch.float64)


def test_shapes_are_powers_of_two_and_fill_their_lanes() -> None:
    from synq_fast.kernels._block_shapes import SHAPES

    for elements, warps in SHAPES.values():
        assert elements.bit_count() == warps.bit_count() == 1
        assert elements >= 32 * warps
