"""Every Triton kernel compiles, just as its launcher asks for it, for GPUs that need not be here.

The launchers run on CPU tensors while a stand-in for the driver names the GPU; compiled kernels are
collected, not run.
"""

import contextlib
import io
import os
from typing import Any

import pytest
import torch

from benchmarks.triton_code import Driver
from tests.compile.ptx_checks import (
    divisions,
    entries,
    inexact,
    resources,
    widest_access,
)

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = triton.language

pytestmark = [
    pytest.mark.compile,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"
    ),
    pytest.mark.skipif(
        not hasattr(triton, "knobs"), reason="Triton before 3.4 does not know all of these GPUs"
    ),
]

CAPABILITIES = (80, 90, 100, 120)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAXIMUM_REGISTERS = 128


class Compiler:
    """Collects what launches compile for one GPU."""

    def __init__(self) -> None:
        self.ptx: list[tuple[str, str]] = []
        self.fused: list[str] = []
        self.log = io.StringIO()

    def add(self, name: str, kernel: Any) -> None:
        self.ptx.append((name, kernel.asm["ptx"]))
        if kernel.metadata.enable_fp_fusion:
            self.fused.append(name)


@pytest.fixture(params=CAPABILITIES, ids="sm_{}".format)
def compiler(request, monkeypatch, tmp_path):
    jit = triton.runtime.jit.JITFunction
    run = jit.run
    compiler = Compiler()

    def compile_only(self, *args, grid, warmup, **options):
        with contextlib.redirect_stdout(compiler.log):
            kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiler.add(self.fn.__name__, kernel)
        return kernel

    monkeypatch.setattr(jit, "run", compile_only)
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver(request.param))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # what is cached prints no log
    with triton.knobs.nvidia.scope():
        triton.knobs.nvidia.dump_ptxas_log = True
        yield compiler


def launch_all(dtype: torch.dtype) -> None:
    """Calls every launcher on every kind of layout."""
    from synq_fast import kernels

    bound = torch.zeros(32)
    image = torch.zeros(4, 32, 14, 16, dtype=dtype)
    for x in (image, image.to(memory_format=torch.channels_last)):
        kernels.fake_quantize(x, bound[0], bound[0], 4, None, None)
        kernels.fake_quantize_backward(x, x, bound[0], bound[0], 4, None, None)
        kernels.quantize_codes(x, bound[0], bound[0], 4, None, None)
        kernels.fake_quantize(x, bound, bound, 4, 1, None)
        kernels.fake_quantize_backward(x, x, bound, bound, 4, 1, None)
        kernels.quantize_codes(x, bound, bound, 16, 1, None)
        kernels.fake_quantize_dynamic(x, 4, None, None, False)
        kernels.fake_quantize_dynamic(x[:1, :, :4], 4, 1, None, False)
    kernels.fake_quantize_dynamic(torch.zeros(2, 32, 128, 128, dtype=dtype), 4, 1, None, False)
    kernels.fake_quantize_dynamic(torch.zeros(4096, 32, dtype=dtype), 4, 1, None, False)
    kernels.fake_quantize_dynamic(torch.zeros(33, 7, dtype=dtype), 4, 0, None, False)


def launch_affine(x: torch.Tensor) -> None:
    """Calls the launchers of the whole fused activation, with every set of gradients."""
    from synq_fast import kernels

    one = torch.ones(x.shape[1])
    for residual in (None, x):
        arguments = x, one, one, residual, one[0], one[0], 4
        kernels.affine_relu_fake_quantize(*arguments, None)
        for parameters in (False, True):
            for of_residual in {False, residual is not None}:
                kernels.affine_relu_fake_quantize_backward(
                    x, *arguments, 6.0, True, parameters, of_residual
                )


def launch_learned_and_relu(dtype: torch.dtype) -> None:
    """Calls the launchers of learned grids and fused activations on every kind of layout."""
    from synq_fast import kernels

    one, seed = torch.ones(32), torch.tensor(0)
    image = torch.zeros(4, 32, 14, 16, dtype=dtype)
    for x in (image, image.to(memory_format=torch.channels_last)):
        for offset in (0, 3):
            kernels.random_mix(x, x, seed, 0.5, offset)
            for wanted in ((True, True), (True, False), (False, True)):
                kernels.random_mix_backward(x, seed, x.stride(), 0.5, *wanted, offset)
        for pair, axis in (((one[0], one[0]), None), ((one, one), 1)):
            kernels.fake_quantize_learned(x, *pair, 4, axis)
            kernels.fake_quantize_learned_backward(x, x, *pair, 4, axis, 0.5)
            for offset in (0, 3):
                chance = seed, 4, axis, 0.5, 0.5, offset
                kernels.fake_quantize_learned_dropped(x, *pair, *chance)
                kernels.fake_quantize_learned_dropped_backward(x, x, *pair, *chance)
            kernels.relu_fake_quantize(x, *pair, 4, axis, None)
            kernels.relu_fake_quantize_backward(x, x, *pair, 4, axis, 6.0, True)
            kernels.relu_fake_quantize_backward(x, x, *pair, 4, axis, None, False)
        launch_affine(x)
    # Odd sizes drawn from an odd place, where registers are scarcest.
    odd = torch.zeros(3, 5, 7, 9, dtype=dtype)
    kernels.fake_quantize_learned_dropped(odd, one[:5], one[:5], seed, 4, 1, 0.5, 0.5, 1)
    kernels.fake_quantize_dynamic(image, 4, 1, 4, True)
    kernels.fake_quantize_dynamic(torch.zeros(4096, 32, dtype=dtype), 4, 1, None, True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_learned_and_relu_launches(compiler: Compiler, dtype: torch.dtype) -> None:
    launch_learned_and_relu(dtype)
    names = {name for name, _ in compiler.ptx}
    assert names >= {"sums_kernel", "finish_sums_kernel", "tensor_kernel", "channel_kernel"}
    assert names >= {"dropped_kernel", "mix_kernel", "parts_kernel"}
    assert compiler.fused == []
    kernels = resources(compiler.log.getvalue())
    assert kernels
    assert [kernel for kernel in kernels if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in kernels if kernel.registers > MAXIMUM_REGISTERS] == []
    wide = set()
    for name, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            assert inexact(instructions) == [], name
            if widest_access(instructions, "ld") >= 128:
                wide.add(name)
    assert wide >= {"tensor_kernel", "channel_kernel", "sums_kernel"}
    assert wide >= {"dropped_kernel", "mix_kernel", "parts_kernel"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches(compiler: Compiler, dtype: torch.dtype) -> None:
    launch_all(dtype)
    assert {name for name, _ in compiler.ptx} == {
        "affine_kernel",
        "channel_kernel",
        "finish_kernel",
        "fused_kernel",
        "ranges_kernel",
        "tensor_kernel",
    }
    assert compiler.fused == []
    kernels = resources(compiler.log.getvalue())
    assert kernels
    assert [kernel for kernel in kernels if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in kernels if kernel.registers > MAXIMUM_REGISTERS] == []

    wide = set()
    for name, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            assert inexact(instructions) == [], name
            if name in ("tensor_kernel", "channel_kernel", "affine_kernel", "fused_kernel"):
                assert divisions(instructions) > 0, name
            if (
                widest_access(instructions, "ld") >= 128
                and widest_access(instructions, "st") >= 128
            ):
                wide.add(name)
            if name == "tensor_kernel":
                assert widest_access(instructions, "ld") >= 128, name
    assert wide >= {"tensor_kernel", "channel_kernel", "fused_kernel"}


@triton.jit
def careless_kernel(x_ptr, y_ptr, scale, zero, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    tl.store(y_ptr + offsets, (x * scale - zero) / scale)


@pytest.mark.parametrize("fusion", [False, True], ids=["plain division", "fusion"])
def test_the_checks_can_fail(compiler: Compiler, fusion: bool) -> None:
    x = torch.zeros(128)
    careless_kernel[(1,)](x, x, 15.0, 8.0, BLOCK=128, enable_fp_fusion=fusion)
    ((_, ptx),) = compiler.ptx
    (instructions,) = entries(ptx).values()
    wrong = inexact(instructions)
    assert any(name.startswith("div.full") for name in wrong)
    assert any(name.startswith("fma.rn.f32") for name in wrong) == fusion
    assert compiler.fused == (["careless_kernel"] if fusion else [])
