"""The ops on a GPU beyond the conformance suite: sizes that fill it, and what only a GPU has."""

import math

import pytest
import torch

from synq_fast import ops, reference
from synq_fast.runtime.capture import capture, warm_up
from synq_fast.runtime.precision import tensor_float32
from synq_fast.testing import CASES, Check, Sample
from synq_fast.testing.case import constant, noise, uniform
from synq_fast.testing.cases._statistics import stored
from synq_fast.testing.cases._streams import WIDTHS, integers
from synq_fast.testing.cases.affine_relu_fake_quantize import factors
from synq_fast.testing.cases.distillation_loss import logits
from synq_fast.testing.cases.inter_head_similarity_loss import make_logits
from synq_fast.testing.cases.layer_norm_fake_quantize import parameters as norm_parameters
from synq_fast.testing.cases.patch_similarity_entropy import make_tokens
from synq_fast.testing.cases.quantized_attention import grids as attention_grids
from synq_fast.testing.cases.quantized_attention import operands as attention_operands
from synq_fast.testing.cases.search_range import DISTRIBUTIONS, distribution
from synq_fast.testing.cases.soft_round import codes_like, decided
from synq_fast.testing.cases.structural_similarity_loss import heads as similar_heads
from synq_fast.testing.cases.update_range import state
from synq_fast.testing.conformance import HALF_TYPES

pytestmark = pytest.mark.cuda

# Each thread takes several steps on any GPU: 8, 16 and 24 million elements, odd and even.
LONG = [((8_000_003,), None), ((64, 64, 56, 70), 1), ((250_001, 96), 1), ((3, 5_000_001), 0)]
IMAGES = [(64, 64, 56, 56), (33, 512, 7, 7), (1, 3, 1_000_001), (128, 16, 32, 32)]
MAPS = [
    ((200, 64, 8, 8), (32, 32)),  # more images than multiprocessors
    ((16, 512, 7, 7), (224, 224)),
    ((2, 2048, 7, 7), (1024, 2050)),  # tiles of pixel columns
    ((2, 24, 112, 112), (112, 112)),  # an early layer, without resizing
]
FILTERS = [
    (16, 3, 224, 224),
    (70, 3, 224, 224),  # two chunks
    (256, 3, 32, 32),
    (3, 248, 250),  # sides on both sides of the narrower tile
    (2, 299, 448),  # odd; the longest side of the CUDA kernel
    (1, 449, 700),  # too long for it
    (5000, 3, 5, 6),
    (4, 64, 56, 40),
]


def bounds(shape, axis):
    channels = () if axis is None else (shape[axis],)
    return constant(-2.0).expand(channels), constant(1.5).expand(channels)


def samples(name: str):
    """Tensors and options of the sizes that fill a GPU."""
    match name:
        case "fake_quantize" | "fake_quantize_minifloat" | "quantize_codes" | "relu_fake_quantize":
            for shape, axis in LONG:
                yield (noise(*shape), *bounds(shape, axis)), {"axis": axis}
        case "fake_quantize_dynamic":
            for shape, axis in LONG:
                yield (noise(*shape),), {"axis": axis}
        case "fake_quantize_learned":
            for shape, axis in LONG[1:3]:
                pair = constant(3.0).expand(shape[axis]), constant(0.3).expand(shape[axis])
                tensors = noise(*shape), *(v.clone() for v in pair)
                yield tensors, {"axis": axis}
                yield tensors, {"axis": axis, "keep": 0.5, "seed": 3}
            yield (noise(8_000_003), constant(3.0), constant(0.3)), {"keep": 0.5, "seed": 2**63}
            yield (
                (noise(8_000_003), constant(3.0), constant(0.3)),
                {"keep": 0.5, "seed": 4, "offset": 2**34 - 4_000_001},
            )
        case "gelu_fake_quantize" | "silu_fake_quantize" | "hardswish_fake_quantize":
            for shape in ((8, 197, 3072), (8_000_003,)):
                yield (noise(*shape), constant(6.0), constant(7.2)), {}
                yield (noise(*shape), constant(48.0), constant(-8.2)), {"grid": "minifloat"}
        case "fake_quantize_log":
            for shape in ((8, 12, 197, 197), (8_000_003,)):
                yield (noise(*shape).abs(), constant(2.0)), {}
        case "layer_norm_fake_quantize":
            for columns in (768, 3072, 4100):
                x = noise(8, 197, columns, mean=0.5)
                yield (x, *norm_parameters(columns, 4)), {}
        case "softmax_fake_quantize":
            for shape in ((8, 12, 197, 197), (64, 3, 64, 64), (40, 9001)):
                yield (noise(*shape, scale=4.0), constant(shape[-1] / 4)), {"alpha": 0.125}
                yield (noise(*shape, scale=4.0), constant(0.1)), {"alpha": 0.5, "grid": "log2"}
        case "quantized_attention":
            for shape in ((4, 12, 197, 197, 64), (64, 3, 49, 49, 32), (1, 2, 1030, 1030, 72)):
                heads, rows, columns, width = shape[1:]
                given = *attention_operands(*shape), *attention_grids(8, columns)
                options = {"bits": 8, "alpha": width**-0.5}
                bias = noise(heads * rows * columns)
                yield (*given, bias), options
                powers = {"bits": (8, 8, 8, 4), "p_grid": "log2"}
                yield (*given[:-1], constant(0.1), bias), options | powers
        case "random_mix":
            for shape, _ in LONG:
                pair = noise(*shape), noise(*shape, seed=1)
                yield pair, {"keep": 0.3, "seed": -5}
                yield pair, {"keep": 0.3, "seed": -5, "offset": 2**34 - 1001}
        case "affine_relu_fake_quantize":
            for shape, _ in LONG[1:3]:
                x = noise(*shape)
                yield (x, *factors(shape[1])), {"upper": 1.5, "ste": "clip"}
                yield (x, *factors(shape[1]), noise(*shape, seed=1)), {}
        case "channel_moments":
            for shape in IMAGES:
                yield (noise(*shape),), {}
                yield (noise(*shape, mean=1e4),), {}
        case "bn_statistics_loss":
            for shape in IMAGES:
                yield (noise(*shape, scale=2.0, mean=0.5), *stored(shape[1])), {}
        case "distillation_loss":
            for shape in ((256, 1000), (4, 100_003), (16_384, 1000)):
                yield logits(*shape), {"temperature": 4.0, "alpha": 3.0}
        case "low_pass":
            for shape in FILTERS:
                for kind in ("gaussian", "butterworth", "ideal"):
                    yield (noise(*shape),), {"kind": kind, "cutoff": 0.36 * shape[-1]}
        case "patch_similarity_entropy":
            for shape in ((32, 196, 192), (8, 196, 768), (1, 1100, 64)):
                yield (make_tokens(*shape),), {"bandwidth": 0.03}
        case "inter_head_similarity_loss":
            for shape in ((16, 12, 196, 196), (8, 64, 33, 577), (2, 3, 500, 5003)):
                yield (make_logits(*shape),), {}
        case "structural_similarity_loss":
            for shape in ((16, 12, 196, 64), (256, 6, 49, 32), (1, 2, 100_003, 40)):
                yield similar_heads(*shape), {}
        case "update_range":
            yield (noise(8_000_003), *state()), {}
        case "search_range":
            for kind in DISTRIBUTIONS:
                yield (distribution(kind, 1_000_003),), {}
            for shape, axis in (((300, 64, 3, 3), 0), ((2, 40, 9001), 1), ((3000, 40), 1)):
                yield (distribution("cubed", math.prod(shape)).view(shape),), {"axis": axis}
        case "soft_round":
            for shape, axis in (((512, 512, 3, 3), 0), ((70_001, 33), 1), ((3_000_001,), None)):
                v = decided(noise(*shape, scale=2.0))
                count = 1 if axis is None else shape[axis]
                grid = uniform(count, low=1.0, high=4.0), noise(count, scale=2.0)
                yield (v, *grid, constant(3.0), codes_like(v, 4)), {"axis": axis}
        case "pack_codes" | "unpack_codes":
            packing = name == "pack_codes"
            for bits in WIDTHS:
                for rows, length in ((1, 9_000_008), (4096, 4608), (3001, 2001)):
                    size = length if packing else -(-length * bits // 8)
                    low, high, dtype = (-128, 128, torch.int8) if packing else (0, 256, torch.uint8)
                    options = {"bits": bits} if packing else {"bits": bits, "length": length}
                    yield (integers(rows, size, low=low, high=high, dtype=dtype),), options
        case "grad_cam" | "layer_cam" | "hires_cam" | "grad_cam_plus_plus" | "cam_alignment_loss":
            for shape, size in MAPS:
                a, g = uniform(*shape), noise(*shape)
                third, options = (), {"size": size}
                if name == "grad_cam_plus_plus":
                    g, third = g.abs() + 0.05, (noise(shape[0]),)
                elif name == "cam_alignment_loss":
                    third, options = (uniform(shape[0], 1, *size),), {}
                yield (a, g, *third), options


@pytest.fixture(params=["cuda", "triton"])
def chosen(request):
    reason = ops.available_backends()[request.param]
    if reason is not None:
        pytest.skip(f"the backend {request.param} is not available: {reason}")
    with ops.backend(request.param):
        yield request.param


@pytest.mark.parametrize("name", [name for name in CASES if any(True for _ in samples(name))])
def test_larger_than_the_device(chosen, name: str) -> None:
    case = CASES[name]
    for tensors, options in samples(name):
        for layout in (torch.contiguous_format, torch.channels_last)[: 1 + (tensors[0].ndim == 4)]:
            x = tensors[0].to(memory_format=layout)
            for dtype in (torch.float32, *HALF_TYPES) if case.exact else (torch.float32,):
                cast = tuple(
                    tensor.to(dtype) if i in case.cast else tensor
                    for i, tensor in enumerate((x, *tensors[1:]))
                )
                check = Check(case, Sample(f"{x.shape}", cast, options), "given")
                assert check.faults(ops, "cuda") == []


@pytest.mark.parametrize("shift", [1, 2, 3, 7])
def test_unaligned_memory(chosen, shift: int) -> None:
    for dtype in (torch.float32, *HALF_TYPES):
        x = noise(100_003).to(dtype)
        low, high = constant(-2.0), constant(1.5)
        found = ops.fake_quantize(x.cuda()[shift:], low.cuda(), high.cuda(), 4)
        assert torch.equal(found.cpu(), reference.fake_quantize(x[shift:], low, high, 4))
        found = ops.fake_quantize_dynamic(x.cuda()[shift:], 4)[0]
        assert torch.equal(found.cpu(), reference.fake_quantize_dynamic(x[shift:], 4)[0])


def test_another_stream(chosen) -> None:
    a, g = uniform(2, 3, 8, 4, 4).cuda().unbind()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        cam = ops.layer_cam(a, g, (16, 16))
    stream.synchronize()
    expected = reference.layer_cam(a.cpu(), g.cpu(), (16, 16))
    torch.testing.assert_close(cam.cpu(), expected, atol=5e-6, rtol=0)


def test_amp_loss_scale_reaches_the_gradient(chosen) -> None:
    a, g, target = (x.cuda() for x in CASES["cam_alignment_loss"].typical().tensors)
    leaf, gradients = a.requires_grad_(), []
    for factor in (1.0, 1024.0):
        loss = ops.cam_alignment_loss(leaf, g, target) * factor
        gradients.append(torch.autograd.grad(loss, leaf)[0] / factor)
    torch.testing.assert_close(*gradients)


def test_mixed_types(chosen) -> None:
    student, teacher, labels = (x.cuda() for x in logits(16, 1000))
    mixed = ops.distillation_loss(student.half(), teacher, labels)
    wide = ops.distillation_loss(student.half().float(), teacher, labels)
    torch.testing.assert_close(mixed, wide)


def test_a_label_out_of_bounds_gives_nan(chosen) -> None:
    student, teacher, _ = (x.cuda() for x in logits(3, 5))
    _, ce, difficulty = ops.distillation_loss(student, teacher, torch.tensor([0, 5, -1]).cuda())
    assert ce.isnan()
    assert difficulty.isnan().tolist() == [False, True, True]


def test_tf32_is_a_choice_of_the_filter_alone(chosen) -> None:
    x = noise(16, 3, 64, 64)
    expected = reference.low_pass(x.double(), 16.0)
    tokens = make_tokens(2, 100, 96).cuda()
    plain = ops.patch_similarity_entropy(tokens)
    with tensor_float32(True):
        error = (ops.low_pass(x.cuda(), 16.0).cpu() - expected).abs().max()
        assert torch.equal(ops.patch_similarity_entropy(tokens), plain)
    assert CASES["low_pass"].values[0].atol < error < 1e-2


@pytest.mark.parametrize("kind", ["gaussian", "butterworth"])
def test_a_filter_is_captured_at_its_first_use(chosen, kind) -> None:
    # A cutoff that nothing else uses: the graph has to build what it needs.
    x = noise(8, 3, 32, 36).cuda()
    warm_up(lambda: ops.low_pass(x, 1.0, kind=kind), x.device)
    graph, y = capture(lambda: ops.low_pass(x, 7.375, kind=kind), x.device)
    x.copy_(torch.randn_like(x))
    graph.replay()
    expected = reference.low_pass(x.double().cpu(), 7.375, kind=kind)
    torch.testing.assert_close(y.cpu().double(), expected, atol=5e-6, rtol=0)


def test_more_settings_of_the_filter_than_are_kept(chosen) -> None:
    x = noise(2, 3, 16, 20)
    cutoffs = [2.0 + i / 8 for i in range(80)]
    first = [ops.low_pass(x.cuda(), cutoff) for cutoff in cutoffs]
    again = [ops.low_pass(x.cuda(), cutoff) for cutoff in cutoffs]
    for cutoff, y, z in zip(cutoffs, first, again, strict=True):
        assert torch.equal(y, z)
        expected = reference.low_pass(x.double(), cutoff)
        torch.testing.assert_close(y.cpu().double(), expected, atol=5e-6, rtol=0)


def test_a_recorded_step_draws_anew_where_its_seed_is_changed(chosen) -> None:
    x, other = noise(2, 100_003).cuda().unbind()
    scale, seed = constant(3.0).cuda().requires_grad_(), torch.tensor(1).cuda()

    def step() -> list[torch.Tensor]:
        leaf = x.detach().requires_grad_()
        y = ops.fake_quantize_learned(leaf, scale, 0.5, 4, keep=0.5, seed=seed)
        y = ops.random_mix(y, other, 0.25, seed)
        return [y.detach(), *torch.autograd.grad(y.sum(), (leaf, scale))]

    warm_up(step, x.device)
    graph, found = capture(step, x.device)
    drawn = []
    for number in (2, 3):
        seed.fill_(number)
        graph.replay()
        drawn.append([value.clone() for value in found])
        for mine, theirs in zip(found, step(), strict=True):
            assert torch.equal(mine, theirs)
    assert not torch.equal(drawn[0][0], drawn[1][0])


def test_peak_memory_of_the_entropy(chosen) -> None:
    """No tensor of images x points x similarities: that alone would be 49 MB here."""
    tokens = make_tokens(32, 196, 192).cuda().requires_grad_()
    ops.patch_similarity_entropy(tokens).sum().backward()
    tokens.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ops.patch_similarity_entropy(tokens).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 30e6


def test_states_on_another_device_are_refused(chosen) -> None:
    with pytest.raises(ValueError, match="move both to one device"):
        ops.update_range(torch.ones(3, device="cuda"), *state())


@pytest.mark.slow
def test_more_than_two_to_the_31_elements(chosen) -> None:
    elements = 2**31 + 4099
    free, _ = torch.cuda.mem_get_info()
    if free < 6 * elements:
        pytest.skip("less than 13 GB of free GPU memory")
    x = torch.zeros(elements, dtype=torch.float16, device="cuda")
    x[-4099:] = torch.randn(4099, device="cuda")
    x[-2:] = torch.tensor([-5.0, 7.0])
    y, low, high = ops.fake_quantize_dynamic(x, 4)
    assert torch.equal(y[-4099:], reference.fake_quantize(x[-4099:], low, high, 4))
    parts = [part.cuda() for part in state()]
    ops.update_range(x, *parts, 0.0)
    assert (parts[0].item(), parts[1].item()) == (-5.0, 7.0)
    found = ops.search_range(x, 4, candidates=2)
    # Zero is a level of both; only the end has errors.
    expected = reference.search_range(x[-5000:].cpu(), 4, candidates=2)
    assert [v.item() for v in found] == [v.item() for v in expected]
