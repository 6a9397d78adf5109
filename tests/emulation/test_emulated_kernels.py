"""What the emulated CUDA kernels are asked beyond the conformance suite.

The suite shows what needs no GPU to be shown: indexing, unaligned heads and tails, grids of any
size, barriers, reductions, arithmetic. tests/compile looks at the code that a GPU would run.
"""

import ctypes
import math

import pytest
import torch

from synq_fast.testing import CASES
from synq_fast.testing.cases._statistics import loss_terms
from synq_fast.testing.conformance import run, same_bits
from tests.emulation.build import build
from tests.emulation.filters import Filters
from tests.emulation.launching import Launcher, Setting
from tests.emulation.namespace import Emulated

# Long enough for grids of several blocks: a sum's order must not follow the grid.
LONG = {
    "fake_quantize_learned": (
        "channels in two long odd pieces, axis 1",
        "a matrix, unaligned in half precision, axis 1",
        "channels in two long odd pieces, axis 1, dropped",
        "more rows than a device of one multiprocessor holds,"
        " channels that divide its grid, axis 1",
    ),
    "soft_round": (
        "channels in two long odd pieces, axis 1",
        "a matrix, unaligned in half precision, axis 1",
    ),
    "fake_quantize_log": (
        "many blocks of Triton and CUDA, odd, axis None",
        "channels in two long odd pieces, axis 1",
    ),
    "fake_quantize_minifloat": (
        "many blocks of Triton and CUDA, odd, axis None",
        "channels in two long odd pieces, axis 1",
    ),
    **dict.fromkeys(
        ("gelu_fake_quantize", "silu_fake_quantize", "hardswish_fake_quantize"),
        (
            "many blocks of Triton and CUDA, odd, axis None",
            "many blocks of Triton and CUDA, odd, axis None, small floats",
        ),
    ),
    "layer_norm_fake_quantize": ("more rows than parts", "four dimensions"),
    "softmax_fake_quantize": (
        "more rows than parts",
        "heads",
        "more rows than parts, powers of two",
    ),
    "quantized_attention": (
        "one more than a tile of rows and than a vector",
        "one more than a tile of rows and than a vector, powers of two",
    ),
    "affine_relu_fake_quantize": ("channels in two long odd pieces, axis 1, residual",),
    "bn_statistics_loss": (
        "pieces longer than a block",
        "channels innermost, rows folded, some left over",
        "channels innermost, packs of columns in several parts",
    ),
    "channel_moments": (
        "parts of long runs, odd",
        "parts of columns",
        "parts of packs of columns",
    ),
    "inter_head_similarity_loss": ("more heads than a vector",),
    "patch_similarity_entropy": ("two blocks and a part of one",),
    "structural_similarity_loss": ("channels of a head", "weights (2, 3, 9)"),
    "cam_alignment_loss": (
        "odd everywhere",
        "several shares of many positions, channels in packs",
    ),
    "low_pass": ("more than one block of rows, depth and lines; all with a rest, gaussian",),
}


@pytest.mark.parametrize("name", LONG)
def test_the_device_changes_no_bit(name: str) -> None:
    case = CASES[name]
    samples = [sample for sample in case.inputs() if sample.reason in LONG[name]]
    assert {sample.reason for sample in samples} == set(LONG[name])
    for sample in samples:
        found = []
        for multiprocessors in (1, 2, 7):
            namespace = Emulated(Setting(multiprocessors))
            results = run(
                lambda *x, n=namespace, **o: case.call(n, *x, **o),
                sample.tensors,
                sample.options,
                case.differentiable,
                alone=False,
            )
            found.append([*results.values, *results.gradients["all results"]])
        for other in found[1:]:
            for mine, theirs in zip(found[0], other, strict=True):
                assert same_bits(mine, theirs) == "", sample.reason


@pytest.mark.parametrize(
    ("shape", "axis", "candidates"),
    [
        ((3, 2049), 0, 9),
        ((2, 3, 700), 1, 9),
        ((60, 4), 1, 9),
        # A block has all candidates of so many channels, and half of those of one.
        ((300, 5), 0, 16),
    ],
)
def test_a_channel_is_searched_as_if_alone(shape, axis: int, candidates: int) -> None:
    namespace = Emulated(Setting())
    x = torch.randn(shape).pow(3)
    ends = namespace.search_range(x, 3, candidates=candidates, axis=axis)
    for index, channel in enumerate(x.unbind(axis)):
        alone = namespace.search_range(channel, 3, candidates=candidates)
        assert [end[index] for end in ends] == list(alone)


def test_a_label_out_of_bounds_gives_nan() -> None:
    namespace = Emulated(Setting())
    logits = torch.randn(2, 3, 5).unbind()
    for label in (-1, 5):
        labels = torch.tensor([0, label, 1])
        kl, ce, difficulty = namespace.distillation_loss(
            *logits, labels, temperature=2.0, alpha=1.0, difficulty_threshold=2.0
        )
        assert kl.isfinite() and ce.isnan()
        assert difficulty.isnan().tolist() == [False, True, False]


def test_a_token_of_zeros() -> None:
    tokens = torch.randn(1, 7, 4)
    tokens[0, 3], tokens[0, 5] = 0, 1e-10
    tokens.requires_grad_()
    entropy = Emulated(Setting()).patch_similarity_entropy(tokens, bandwidth=0.2)
    (gradient,) = torch.autograd.grad(entropy.sum(), tokens)
    assert entropy.isfinite().all()
    assert gradient[0, 3].norm() > 1e5
    along = (gradient * tokens).sum(-1)[0]
    assert along[[0, 1, 2, 4, 6]].abs().max() < 1e-5
    assert along[5] != 0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_variance_does_not_cancel(layout) -> None:
    x = (torch.randn(8, 4, 8, 8) + 1e4).to(memory_format=layout).requires_grad_()
    mean, var = torch.zeros(4), torch.rand(4) + 1
    wide = x.detach().double().requires_grad_()
    expected = loss_terms(wide, mean.double(), var.double())[1]
    namespace = Emulated(Setting())
    loss = namespace.bn_statistics_loss(x, mean, var)[1]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    (gradient,), (slope,) = torch.autograd.grad(loss, x), torch.autograd.grad(expected, wide)
    assert (gradient - slope).abs().max() < 2e-3 * slope.abs().max()


def test_layers_of_a_network_share_launches() -> None:
    shape = (3, 8, 5, 5)
    network = [torch.randn(shape).to(memory_format=torch.channels_last) for _ in range(35)]
    stored = [[torch.rand(8) + 0.5 for _ in network] for _ in range(2)]
    launched = build("bn_statistics_loss").launch_count
    launched.restype = ctypes.c_int64
    namespace = Emulated(Setting())
    inputs = [x.requires_grad_() for x in network]
    before = launched()
    loss = namespace.bn_statistics_losses(inputs, *stored)
    forward = launched() - before
    torch.autograd.grad(loss, inputs)
    # 32 layers fit into a launch: statistics, what puts their parts together, one sum of all.
    assert (forward, launched() - before - forward) == (2 + 2 + 1, 2)


def test_a_network_of_all_kinds_of_layers() -> None:
    torch.manual_seed(3)
    namespace = Emulated(Setting())
    inputs, stored, weights = [], ([], []), []
    for i in range(37):
        channels, layout = (3, 8, 64, 12)[i % 4], (torch.contiguous_format, torch.channels_last)
        x = torch.randn(2, channels, 3 + i % 5, 4).to(memory_format=layout[i // 4 % 2])
        inputs.append(x.to((torch.float32, torch.bfloat16, torch.float16)[i % 3]).requires_grad_())
        stored[0].append(torch.randn(channels))
        stored[1].append(torch.rand(channels))
        weights.append(0.5 + i % 7)
    loss = namespace.bn_statistics_losses(inputs, *stored, weights)
    gradients = torch.autograd.grad(loss, inputs)
    total = 0.0
    for x, mean, var, weight, gradient in zip(inputs, *stored, weights, gradients, strict=True):
        wide = x.detach().double().requires_grad_()
        alone = weight / len(inputs) * sum(loss_terms(wide, mean.double(), var.double()))
        (slope,) = torch.autograd.grad(alone, wide)
        total += alone.item()
        unit = torch.finfo(x.dtype).eps * slope.abs().max()
        assert (gradient - slope).abs().max() < max(4 * unit, 1e-8)
    assert loss.item() == pytest.approx(total, rel=1e-6)


@pytest.fixture
def library() -> ctypes.CDLL:
    return build("low_pass")


def test_tf32_is_a_choice(library) -> None:
    x, filters = torch.randn(4, 16, 16), Filters(Launcher(library, Setting()))
    expected = CASES["low_pass"].oracle(x.double(), cutoff=4.0)
    error = (filters.filtered(x, 4.0, tf32=True) - expected).abs().max()
    assert CASES["low_pass"].values[0].atol < error < 5e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_chunks_change_no_bit(library, dtype, layout) -> None:
    """Seven images in chunks of all, of three, three and one, and of one; memory for a chunk."""
    x = torch.randn(7, 3, 10, 12).to(dtype, memory_format=layout)
    library.launch_count.restype = ctypes.c_int64
    filters = Filters(Launcher(library, Setting()))
    image = x[0].numel() if layout is torch.channels_last else x[0, 0].numel()
    images = x.numel() // image
    results, launches, sizes = [], [], []
    try:
        for fitting in (images, images // 2, 1, 0.5):
            library.set_chunk_bytes(ctypes.c_int64(int(fitting * image * 4)))
            before = library.launch_count()
            results.append(filters.filtered(x, 3.0))
            launches.append(library.launch_count() - before - 2)  # two that make matrices
            sizes.append(filters.workspace_size / image)
    finally:
        library.set_chunk_bytes(ctypes.c_int64(4096))
    for result in results[1:]:
        assert same_bits(results[0], result) == ""
    assert launches == [2, 6, 2 * images, 2 * images]
    of_chunks = [images, math.ceil(images / 3), 1, 1]
    assert sizes == ([0] * 4 if dtype is torch.float32 else of_chunks)


def test_too_long_a_side_is_refused(library) -> None:
    with pytest.raises(AssertionError):
        Filters(Launcher(library, Setting())).filtered(torch.randn(1, 1, 449), 2.0)


def test_emulated_tensor_cores(library) -> None:
    """Operands are laid out as the PTX manual says; on its own against a matrix product."""
    a, b = torch.randint(-8, 9, (16, 8)).float(), torch.randint(-8, 9, (8, 8)).float()
    c = torch.full((16, 8), float("nan"))
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (a, b, c)]
    assert library.multiply(*pointers) == 0
    assert torch.equal(c, a @ b)
    parts = torch.zeros(2)
    for value in (1.0, 3.14159274, -1e-3, 1 + 2**-11, 2 - 2**-23):
        for finite, bound in ((True, 2**-21), (False, 2**-20)):
            given = ctypes.c_float(value), ctypes.c_bool(finite), ctypes.c_void_p(parts.data_ptr())
            library.split(*given)
            error = abs(parts.double().sum().item() - torch.tensor(value).item())
            assert error <= abs(value) * bound
            assert (parts.view(torch.int32) & 0x1FFF == 0).all()
