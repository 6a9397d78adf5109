"""What the interpreted Triton kernels are asked beyond the conformance suite."""

import math
import subprocess
import sys

import numpy
import pytest
import torch

from synq_fast import ops
from synq_fast.testing import CASES
from synq_fast.testing.cases._statistics import loss_terms
from synq_fast.testing.cases.search_range import EXCESS, distribution, excess

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.fixture(scope="module")
def kernels():
    from synq_fast import kernels

    return kernels


def test_words_are_those_of_triton_and_of_the_reference(kernels) -> None:
    from synq_fast.reference._philox import philox as plain
    from tests.kernels.words import words_kernel

    mask = 2**32 - 1
    for first in (0, 2**32 - 16, 2**61):
        for seed in (0, 1, -1, 2**40 + 5, -(2**63)):
            quad, key = torch.arange(64) + first, torch.tensor(seed)
            ours, theirs = torch.empty(2, 4, 64, dtype=torch.int64).unbind()
            words_kernel[(1,)](quad, key, ours, theirs, BLOCK=64)
            zero = torch.zeros_like(quad)
            counter = quad & mask, quad >> 32, zero, zero
            expected = plain(counter, (key & mask, key >> 32 & mask))
            assert torch.equal(ours, torch.stack(expected))
            below = quad < 2**32  # beyond, versions of Triton differ
            assert torch.equal(ours[:, below], theirs[:, below])


def test_a_dense_layout_is_read_where_it_lies(kernels) -> None:
    from synq_fast.kernels._layout import dense

    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    assert dense(x, 1)[0].data_ptr() == x.data_ptr()


def test_gradients_that_are_not_asked_for(kernels) -> None:
    """The backward launchers leave out what nobody wants."""
    x, gradient = torch.randn(2, 4, 5, 6).unbind()
    factors, bounds = torch.randn(2, 5).unbind(), (torch.tensor(0.0), torch.tensor(2.0))
    arguments = gradient, x, *factors, None, *bounds, 4, None, True
    everything = kernels.affine_relu_fake_quantize_backward(*arguments, True, False)
    alone = kernels.affine_relu_fake_quantize_backward(*arguments, False, False)
    assert torch.equal(everything[0], alone[0])
    assert [part.shape for part in alone[1:]] == [(0,), (0,), (0,)]


def test_filters_by_matrices(kernels) -> None:
    from synq_fast.kernels.low_pass import _stored_matrix

    x = torch.randn(1, 6, 7)
    with pytest.raises(ValueError, match="method matrix is for the kind gaussian"):
        kernels.low_pass(x, 2.0, "ideal", 3, "matrix")
    _stored_matrix.cache_clear()
    for _ in range(3):
        y = kernels.low_pass(x, 2.0, "gaussian", 2, "matrix")
    assert _stored_matrix.cache_info().misses == 2
    assert _stored_matrix.cache_info().maxsize is not None
    assert (y - CASES["low_pass"].oracle(x.double(), cutoff=2.0)).abs().max() < 5e-6


def product(a, b, dtype):
    """The product of two matrices, each element by the same operations."""
    return (a[:, :, None] * b[None, :, :]).sum(1, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_chunks_change_no_bit(kernels, monkeypatch, dtype, layout) -> None:
    """Seven planes in chunks of all, of three, three and one, and of one; memory for a chunk."""
    module = sys.modules[kernels.low_pass.__module__]
    filter_axis, passes = module.filter_axis, []

    def counted(x, y, *arguments, last) -> None:
        passes.append((last, x.numel()))
        filter_axis(x, y, *arguments, last=last)

    # NumPy's product rounds by the place of a column in its block, which tensor cores do not.
    monkeypatch.setattr(numpy, "matmul", product)
    monkeypatch.setattr(module, "filter_axis", counted)
    channels = 3 if layout is torch.channels_last else 1
    x = torch.randn(7, channels, 22, 35).to(dtype).to(memory_format=layout)
    plane = channels * 22 * 35
    results = []
    for fitting, chunks in ((7, [7]), (3.5, [3, 3, 1]), (1, [1] * 7), (0.5, [1] * 7)):
        monkeypatch.setattr(module, "CHUNK_BYTES", int(fitting * plane * 4))
        passes.clear()
        results.append(kernels.low_pass(x, 4.0, "gaussian", 2, "auto"))
        assert passes == [(last, size * plane) for size in chunks for last in (False, True)]
    assert all(torch.equal(results[0], other) for other in results)
    assert results[0].stride() == x.stride()
    oracle = CASES["low_pass"].oracle(x.double(), cutoff=4.0)
    bound = 5e-6 if dtype == torch.float32 else 2e-2
    assert (results[0].double() - oracle).abs().max() < bound


def test_parts_are_joined_some_at_a_time(kernels, monkeypatch) -> None:
    """As many as there are at once give the same, but for rounding to float32."""
    from synq_fast.kernels import _tiles

    x = torch.randn(3, 8, 40, 41).add(10).to(memory_format=torch.channels_last)
    arguments = x, torch.zeros(8), torch.ones(8)
    monkeypatch.setattr(_tiles, "MINIMUM_TILES", 1)
    at_once = *kernels.bn_statistics_loss(*arguments)[2], *kernels.channel_moments(x)
    for launcher in (kernels.bn_statistics_loss, kernels.channel_moments):
        monkeypatch.setattr(sys.modules[launcher.__module__], "PARTS", 4)
    again = *kernels.bn_statistics_loss(*arguments)[2], *kernels.channel_moments(x)
    flat = x.double().movedim(1, 0).flatten(1)
    expected = flat.mean(1), flat.mean(1), flat.var(1, correction=0) - 1
    for one, other in zip(at_once, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    for value, true in zip(again, expected, strict=False):
        torch.testing.assert_close(value, true, rtol=1e-6, atol=2e-6)


def layers_of_all_kinds() -> list[torch.Tensor]:
    """Layers that are read alike and not: two types, both layouts, wide ones, an odd address."""
    shapes = [(3, 16, 9, 8), (2, 64, 5, 5), (70, 7, 3, 3), (4, 130, 2, 2), (5, 33), (1, 3, 4, 4)]
    layers = [torch.randn(shape).add(0.3) for shape in shapes]
    layers += [x.to(memory_format=torch.channels_last) for x in layers if x.ndim == 4]
    layers += [x.bfloat16() for x in layers[::2]]
    return [*layers, torch.randn(1 + 2 * 16 * 36)[1:].view(2, 16, 6, 6)]


def test_a_layer_of_a_network_is_reduced_as_if_alone(kernels) -> None:
    """To the bit: how a sum is divided does not depend on what shares its launch."""
    layers = layers_of_all_kinds()
    stored = [(torch.linspace(-1, 1, x.shape[1]), torch.rand(x.shape[1])) for x in layers]
    weights = [0.1 * (i + 1) for i in range(len(layers))]
    loss, statistics = kernels.bn_statistics_losses(
        layers, *map(list, zip(*stored, strict=True)), weights
    )
    alone = [kernels.bn_statistics_loss(x, *s) for x, s in zip(layers, stored, strict=True)]
    assert torch.equal(statistics, torch.cat([found for *_, found in alone], 1))
    total = sum(w * (mean + var) for w, (mean, var, _) in zip(weights, alone, strict=True))
    assert loss.item() == pytest.approx(total.item(), rel=1e-6)
    slope = torch.tensor(1.25)
    gradients = kernels.bn_statistics_losses_backward(slope, layers, statistics, weights)
    for x, gradient, (*_, found), weight in zip(layers, gradients, alone, weights, strict=True):
        lone = kernels.bn_statistics_losses_backward(slope, [x], found, [weight])
        assert torch.equal(gradient, lone[0]) and gradient.stride() == x.stride()
        half = kernels.bn_statistics_loss_backward(slope * 0.5, slope * 0.5, x, found)
        alike = kernels.bn_statistics_losses_backward(slope, [x], found, [0.5])
        assert torch.equal(half, alike[0])


def test_a_table_of_words(kernels) -> None:
    from synq_fast.kernels._layer_table import WORDS, table_of

    rows = [(i, -i, 2**62 + i) for i in range(WORDS.value // 2)]
    assert torch.equal(table_of(rows, torch.zeros(1)), torch.tensor(rows).T)


def results_by_shape(kernels, x: torch.Tensor) -> list[torch.Tensor]:
    """What kernels whose shapes are chosen give, each in one call."""
    one, each = torch.tensor(1.5), torch.linspace(0.5, 2, x.shape[1])
    low, seed = -each, torch.tensor(7)
    grid, statistics = (-one, one, 4), torch.rand(3, x.shape[1]).double()
    moments = torch.rand(2, *x.shape[:2]).unbind()
    maps = torch.rand(3, 1, 20, 8), torch.rand(3, x.shape[1]), torch.rand(3, 1, 9, 5)
    last = not x.is_contiguous()
    codes = torch.arange(9000).to(torch.int8).view(1, -1)
    return [
        kernels.fake_quantize(x, -one, one, 4, None, None),
        kernels.fake_quantize_backward(x, x, low, each, 4, 1, None),
        kernels.affine_relu_fake_quantize(x, each, low, x, *grid, 6.0),
        *kernels.fake_quantize_dynamic(x, 4, None, None, False),
        *kernels.fake_quantize_dynamic(x, 4, 1, None, True),
        kernels.fake_quantize_learned_dropped(x, each, low, seed, 4, 1, 0.5, 1.0, 3),
        kernels.fake_quantize_log(x, each, 4, 1),
        kernels.activation_fake_quantize(x, one, one, 1, 4, False),
        kernels.random_mix(x, -x, seed, 0.5),
        *kernels.random_mix_backward(x, seed, x.stride(), 0.5, True, True),
        kernels.bn_statistics_loss_backward(one, one, x, statistics),
        *kernels.bn_statistics_losses_backward(one, [x, x[:2]], statistics.repeat(1, 2), [1, 2]),
        kernels.channel_moments_backward(*moments, x, moments[0]),
        kernels.total_variation_backward(one, x, torch.ones(1, 4)),
        kernels.structural_similarity_loss_backward(one, x, x, None, torch.ones(3, 70, 4, 5)),
        kernels.grad_cam_backward(*maps, 0, 0.1, 0.1, last, torch.float32),
        kernels.grad_cam(x, x, None, 0, 30, 20, 0.1, 0.1)[0],
        kernels.distillation_loss_backward(one, one, torch.rand(2, 40, 60), torch.zeros(40, 60)),
        (packed := kernels.pack_codes(codes, 4)),
        kernels.unpack_codes(packed, 4, 9000),
    ]  # fmt: skip


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_chosen_shapes_change_no_bit(kernels, monkeypatch, layout) -> None:
    from synq_fast.kernels import _block_shapes

    x = torch.randn(3, 70, 9, 5).to(memory_format=layout)
    results = []
    for elements, warps in ((256, 4), (4096, 8)):
        shape = _block_shapes.BlockShape(elements, warps)
        monkeypatch.setattr(_block_shapes, "SHAPES", dict.fromkeys(_block_shapes.SHAPES, shape))
        torch.manual_seed(0)
        results.append(results_by_shape(kernels, x))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()


def test_a_search_returns_to_its_sums(kernels, monkeypatch) -> None:
    module = sys.modules[kernels.search_range.__module__]
    monkeypatch.setattr(module, "MAXIMUM_PROGRAMS", 2)
    x = distribution("cubed", 4 * 2048 + 5)
    assert excess(x, kernels.search_range(x, 4, 9, 2.4), 4, 9)[1] <= EXCESS


@pytest.mark.parametrize(("shape", "axis"), [((2, 2049), 0), ((2, 3, 70), 1), ((60, 4), -1)])
def test_a_channel_is_searched_as_if_alone(kernels, shape, axis: int) -> None:
    x = distribution("cubed", math.prod(shape)).view(shape)
    ends = kernels.search_range(x, 3, 9, 2.4, axis)
    for index, channel in enumerate(x.unbind(axis)):
        assert [end[index] for end in ends] == list(kernels.search_range(channel, 3, 9, 2.4))


def test_an_update_is_seen_by_autograd(kernels) -> None:
    state = torch.zeros(()), torch.zeros(1), torch.zeros((), dtype=torch.int64)
    kernels.update_range(torch.ones(3, requires_grad=True), *state, 0.9)
    assert [value._version for value in state] == [1, 1, 1]
    assert not state[0].requires_grad
    with pytest.raises(ValueError, match="x is empty"):
        torch.ops.synq_fast.update_range.triton(torch.empty(0), *state, 0.9)


def test_a_label_out_of_bounds_gives_nan() -> None:
    with ops.backend("triton"):
        kl, ce, difficulty = ops.distillation_loss(
            *torch.randn(2, 3, 5).unbind(), torch.tensor([0, 5, -1])
        )
    assert kl.isfinite() and ce.isnan()
    assert difficulty.isnan().tolist() == [False, True, True]


def test_a_network_reads_no_layer_of_weight_zero() -> None:
    x, y = torch.randn(4, 3, 5, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    stored = [torch.zeros(3), torch.zeros(8)], [torch.ones(3), torch.ones(8)]
    with ops.backend("triton"):
        ops.bn_statistics_losses([x, y], *stored, [1.0, 0.0]).backward()
    assert x.grad.any() and y.grad is None


def test_the_identity_saves_nothing() -> None:
    saved = []
    x, bounds = torch.randn(3, 4, requires_grad=True), (torch.zeros(4), torch.ones(4))
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda value: value):
        torch.ops.synq_fast.fake_quantize.triton(x, *bounds, 4, 1, None, False)
    assert saved == []


def test_without_triton_the_package_imports_and_kernels_explain_themselves() -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch
import synq_fast
assert synq_fast.ops.fake_quantize(torch.zeros(3), -1.0, 1.0, 4).shape == (3,)
try:
    import synq_fast.kernels
except ImportError as error:
    assert "needs Triton" in str(error) and "pip install triton" in str(error), error
else:
    raise AssertionError("synq_fast.kernels imported without Triton")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_variance_does_not_cancel(layout) -> None:
    x = (torch.randn(8, 4, 8, 8) + 1e4).to(memory_format=layout).requires_grad_()
    mean, var = torch.zeros(4), torch.rand(4) + 1
    wide = x.detach().double().requires_grad_()
    expected = loss_terms(wide, mean.double(), var.double())[1]
    with ops.backend("triton"):
        loss = ops.bn_statistics_loss(x, mean, var)[1]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    (gradient,), (slope,) = torch.autograd.grad(loss, x), torch.autograd.grad(expected, wide)
    assert (gradient - slope).abs().max() < 2e-3 * slope.abs().max()
