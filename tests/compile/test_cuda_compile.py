"""Every CUDA source compiles everywhere, spills nothing, and its PTX is exact and reads packs.

How packs are stored is counted in test_cuda_stores.py.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.compile.ptx_checks import divisions, entries, inexact, resources, widest_access
from tests.cuda_toolkit import find_nvcc

pytestmark = pytest.mark.compile

SOURCES = sorted((Path(__file__).parents[2] / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90", "100", "120")
FLAGS = ("-std=c++17", "-O3", "--fmad=false")  # as in CMakeLists.txt
# 256 threads of 64 registers: half of what a multiprocessor can hold, enough to fill memory's pipe.
MAXIMUM_REGISTERS = 64
# Products of tiles hold their sums in registers, and compute more than they read.
OF_TILES = re.compile(
    r"attention_(query_gradient_|key_gradient_)?kernel|head_(pairs|gradient)_kernel"
    r"|similarities_kernel|gradients_kernel"
)
MAXIMUM_OF_TILES = 128
# Mangled names of kernels that read four columns of a half-precision type at once.
COLUMNS_OF_HALF = r"column_(moments|sums)_kernelI\w*?(6__half|13__nv_bfloat16)\w*?Li4E"
# Kernels whose results are right within a tolerance, and what they may do that exact ones may not.
TOLERANT = {
    # Sums of squares, and one product and sum per element.
    "bn_statistics_loss.cu": {"moments": {"fma.rn.f32"}},
    "channel_moments.cu": {"moments": {"fma.rn.f32"}, "column_gradient": {"fma.rn.f32"}},
    # The exponential is one factor of a whole map of Grad-CAM++, right to two units.
    "grad_cam.cu": {"coarse_kernel": {"ex2.approx.ftz.f32", "fma.rn.f32", "fma.rm.f32"}},
    # Products of rows, and sums of them.
    "inter_head_similarity_loss.cu": {"head_": {"fma.rn.f32"}},
    # Where a double's quotient and logarithm begin; what follows makes them exact.
    "patch_similarity_entropy.cu": {"": {"rcp.approx.ftz.f64"}},
    # A quotient corrected by its exact remainder, and powers that are right to 1e-6.
    "search_range.cu": {
        "errors_kernel": {"fma.rn.f32", "lg2.approx.ftz.f32", "ex2.approx.ftz.f32"},
    },
    # Sigmoids, and powers as exponentials of logarithms, right to a few units; the rest is exact.
    "soft_round.cu": {
        "channel_kernel": {"ex2.approx.ftz.f32", "fma.rn.f32", "fma.rm.f32"},
        "column_kernel": {"ex2.approx.ftz.f32", "fma.rn.f32", "fma.rm.f32"},
    },
    # Exponentials and polynomials, right to some units; the quantizer after them is exact.
    "activation_fake_quantize.cu": {
        "kernel": {"ex2.approx.ftz.f32", "fma.rn.f32", "fma.rm.f32"},
    },
    "softmax_fake_quantize.cu": {
        "softmax_kernel": {"ex2.approx.ftz.f32", "fma.rn.f32", "fma.rm.f32"},
        "softmax_gradient_kernel": {"ex2.approx.ftz.f32", "fma.rn.f32", "fma.rm.f32"},
    },
    # Products of codes, and exponentials as above; the quantizers are exact.
    "quantized_attention.cu": {
        "attention_total_kernel": set(),
        "attention_": {"ex2.approx.ftz.f32", "fma.rn.f32", "fma.rm.f32"},
    },
    # Exponentials, right to two units in the last place, and a logarithm in float64.
    "distillation_loss.cu": {
        "logits_kernel": {"ex2.approx.ftz.f32", "fma.rm.f32", "fma.rn.f32", "rcp.approx.ftz.f64"},
    },
}

CARELESS = """
__global__ void careless(const float* x, float* y, float scale, float zero, float* sum) {
  y[threadIdx.x] = (x[threadIdx.x] * scale - zero) / scale;
  atomicAdd(sum, y[threadIdx.x]);
}
__global__ void greedy(const float* x, float* y) {
  float kept[96];
  for (int i = 0; i < 96; ++i) kept[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
  for (int i = 0; i < 96; ++i) y[i * 1024 + threadIdx.x] = kept[i] * kept[95 - i];
}
"""


def compile_cuda(source: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc not found")
    result = subprocess.run([nvcc, *flags, source], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def ptx_of(source: Path, arch: str, folder: Path, *flags: str) -> str:
    target = folder / "kernel.ptx"
    compile_cuda(source, "-ptx", f"-arch=compute_{arch}", *flags, "-o", str(target))
    return target.read_text()


def test_sources_are_found() -> None:
    names = {path.name for path in SOURCES}
    assert names >= {"fake_quantize.cu", "fake_quantize_dynamic.cu", "quantize_codes.cu"}
    assert names >= {"fake_quantize_learned.cu", "relu_fake_quantize.cu"}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_resources(source: Path, cuda_object) -> None:
    kernels = resources(cuda_object(source).log)
    assert {kernel.arch for kernel in kernels} == {f"sm_{arch}" for arch in ARCHITECTURES}
    assert [kernel for kernel in kernels if kernel.spilled_bytes > 0] == []
    limits = {True: MAXIMUM_OF_TILES, False: MAXIMUM_REGISTERS}
    assert [k for k in kernels if k.registers > limits[bool(OF_TILES.search(k.name))]] == []


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_ptx(source: Path, arch: str, cuda_object) -> None:
    kernels = entries(cuda_object(source).ptx[arch])
    assert kernels
    tolerant = TOLERANT.get(source.name, {})
    for name, instructions in kernels.items():
        allowed = next((tolerant[kernel] for kernel in tolerant if kernel in name), set())
        assert set(inexact(instructions)) <= allowed, name
        half = re.search(r"column_coarse_kernelI(6__half|13__nv_bfloat16)", name) is not None
        if half:
            assert (widest_access(instructions, "ld") == 64) == ("Lb1EEEv" in name), name
        if "coarse_kernel" in name and not half:
            # The last template argument says whether the kernel works on packs.
            packed = "Lb1EEEv" in name
            assert (widest_access(instructions, "ld") == 128) == packed, name
        if re.search(r"streams_kernelI\w*?(7PackingELj|9UnpackingELj8)", name):
            assert widest_access(instructions, "ld") == 128, name
        # Mangled template arguments: packs of four float32 or eight half-precision elements.
        count = next((count for count in (4, 8) if f"Li{count}E" in name), 0)
        if count == 0:
            continue
        # Blackwell loads packs of factors in 256 bits. Columns that are summed come in fours.
        half = re.search(COLUMNS_OF_HALF, name) is not None
        assert widest_access(instructions, "ld") >= (64 if half else 128), name
        if re.search(r"row_kernel|affine_map_kernelI\w*FakeQuantize|\d(norm|softmax)_kernel", name):
            assert divisions(instructions) > count, name


def test_the_build_refuses_spills(tmp_path: Path) -> None:
    build = (Path(__file__).parents[2] / "CMakeLists.txt").read_text()
    assert "set(ptxas_options -v,-warn-spills)" in build
    assert "string(APPEND ptxas_options ,-Werror)" in build
    nvcc = find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc not found")
    source = tmp_path / "careless.cu"
    source.write_text(CARELESS)
    command = [nvcc, "-cubin", "-arch=sm_90", "-Xptxas=-v,-warn-spills,-Werror", source]
    output = ["-o", str(tmp_path / "out.cubin")]
    assert subprocess.run([*command, *output], capture_output=True).returncode == 0
    spilling = subprocess.run(
        [*command, *output, "-maxrregcount=32"], capture_output=True, text=True
    )
    assert spilling.returncode != 0
    assert "error   : Registers are spilled" in spilling.stdout + spilling.stderr


def test_the_checks_can_fail(tmp_path: Path) -> None:
    source = tmp_path / "careless.cu"
    source.write_text(CARELESS)
    exact = entries(ptx_of(source, "90", tmp_path, "--fmad=false"))
    fused = entries(ptx_of(source, "90", tmp_path))
    fast = entries(ptx_of(source, "90", tmp_path, "--use_fast_math"))
    careless = next(name for name in exact if "careless" in name)
    # Some compilers fuse in PTX, others leave products and sums there that ptxas may fuse.
    contracted = {"fma.rn.f32", "mul.f32"}
    assert contracted & set(inexact(fused[careless]))
    assert not contracted & set(inexact(exact[careless]))
    assert any(name.startswith(("atom", "red")) for name in inexact(exact[careless]))
    assert any(".ftz" in name for name in inexact(fast[careless]))
    assert widest_access(exact[careless], "ld") == 0
    log = compile_cuda(
        source,
        "-cubin",
        "-arch=sm_90",
        "-maxrregcount=32",
        "-Xptxas=-v",
        "-o",
        str(tmp_path / "out.cubin"),
    )
    kernels = resources(log.stdout + log.stderr)
    assert any(kernel.spilled_bytes > 0 for kernel in kernels if "greedy" in kernel.name)
