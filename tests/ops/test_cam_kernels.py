"""The class activation map ops on every backend: layouts, types, tokens, ties, special values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synq_fast import ops, reference
from tests.cam_cases import (
    CLAMPED,
    DTYPES,
    KINDS,
    TIES,
    Case,
    assert_gradient_close,
    assert_results_close,
    call,
    cases,
    cut_tokens,
    gradients_for,
    results,
    tie_case,
    unclamped,
)
from tests.ops.backends import device
from tests.tolerances import assert_close

__all__ = ["device"]  # used by pytest

ALL_KINDS = (*KINDS, "cam_alignment_loss")
# The weights of Grad-CAM++ are not exact, so sums with them are no exact ties.
TIE_KINDS = tuple(kind for kind in ALL_KINDS if kind != "grad_cam_plus_plus")


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_gradient(device, kind, dtype):
    for case in cases(kind, dtype):
        here = case.to(device)
        actual = results(lambda leaf, here=here: call(ops, kind, here, leaf), here)
        assert actual[0].dtype == torch.float32
        assert actual[1].dtype == dtype
        assert_results_close(actual, kind, case)


@pytest.mark.parametrize("kind", CLAMPED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_a_clamp(device, kind, dtype):
    noticed = False
    for case in map(unclamped, cases(kind, dtype)):
        here = case.to(device)
        actual = results(lambda leaf, here=here: call(ops, kind, here, leaf), here)
        assert_results_close(actual, kind, case)
        clamped = call(ops, kind, here._replace(clamp=1e-10), here.activations)
        noticed |= (clamped - actual[0]).abs().max().item() > 0.01
    assert noticed


@pytest.mark.parametrize("kind", ["grad_cam", "layer_cam"])
@pytest.mark.parametrize("where", ["activations", "gradients"])
def test_nan_passes_where_nothing_is_clamped(device, kind, where):
    tensors = {name: torch.rand(2, 5, 4, 4) for name in ("activations", "gradients")}
    tensors[where][1, 2, 1, 1] = float("nan")
    cam = getattr(ops, kind)(*(x.to(device) for x in tensors.values()), (8, 9), clamp=None)
    assert cam[1].isnan().all()
    assert cam[0].isfinite().all()


def test_layer_cam_without_a_clamp_is_hires_cam(device):
    a, g = torch.randn(2, 2, 6, 5, 4, device=device)
    assert torch.equal(ops.layer_cam(a, g, (9, 8), clamp=None), ops.hires_cam(a, g, (9, 8)))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e8])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_plus_plus_counts_gradients_of_any_scale(device, scale, layout):
    a, g = torch.rand(2, 19, 6, 7), torch.randn(2, 19, 6, 7) * scale
    a[:, 3] -= 3.0  # a negative sum
    case = Case("", a, g, torch.tensor([-200.0, 200.0]), torch.rand(2, 1, 9, 8), (9, 8), None)
    here = case._replace(
        activations=a.to(memory_format=layout), gradients=g.to(memory_format=layout)
    ).to(device)
    actual = results(lambda leaf: call(ops, "grad_cam_plus_plus", here, leaf), here)
    assert_results_close(actual, "grad_cam_plus_plus", case)
    assert_close(actual[0].amax((1, 2, 3)).cpu(), [1.0, 1.0], "cam_map")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-7, 0.1])
def test_plus_plus_denominators_of_zero_count_as_one(device, layout, eps):
    for channels in (2, 19):  # alone and in a group of channels
        a, g = torch.zeros(2, 1, channels, 1, 20)
        a[0, 0, 0, :2] = torch.tensor([-4.0, 2.0])
        a[0, 1, 0, :3] = torch.tensor([9.0, 1.0, 6.0])
        g[0, 0, 0, :2] = torch.tensor([1.0, 0.5])  # denominators 0 and 1: 1 + 0.5 / 1
        g[0, 1, 0, 4] = 1.0  # 1 / (2 + 16)
        here = [x.to(device, memory_format=layout) for x in (a, g)]
        score = torch.zeros(1, device=device)
        cam = ops.grad_cam_plus_plus(*here, score, (1, 20), eps=eps).cpu()
        expected = (1.5 * a[:, 0].double() + a[:, 1].double() / 18).relu()
        assert_close(cam[0], expected / expected.max(), "cam_map")


@pytest.mark.parametrize("kind", TIE_KINDS)
@pytest.mark.parametrize("name", TIES)
def test_ties_share_the_gradient(device, kind, name):
    case = tie_case(name)
    here = case.to(device)
    actual = results(lambda leaf: call(ops, kind, here, leaf), here)
    assert_results_close(actual, kind, case)


def test_ties_matter():
    """The tie cases would notice a gradient that goes to one pixel alone."""
    case = tie_case("two corners")
    leaf = case.activations.clone().requires_grad_()
    (shared,) = torch.autograd.grad(reference.grad_cam(leaf, case.gradients, (6, 6))[0].sum(), leaf)
    assert_close(shared[0, 0, 0, 0], shared[0, 0, 2, 2], "cam_map")
    assert shared[0, 0, 0, 0].abs() > 0.1


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((3, 70, 7, 7), (224, 224)),  # ResNet, many vectors
        ((2, 530, 8, 8), (32, 32)),  # channels beyond a block
        ((2, 3, 24, 25), (50, 40)),  # positions beyond a block
        ((1, 6, 3, 2), (2, 700)),  # rows longer than a block
        ((5, 40, 14, 14), (60, 61)),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_larger(device, kind, shape, size, layout):
    a, g = torch.rand(shape), gradients_for(kind, torch.randn(shape))
    case = Case("", a, g, torch.zeros(shape[0]), torch.rand(shape[0], 1, *size), size, None)
    here = case._replace(
        activations=a.to(memory_format=layout), gradients=g.to(memory_format=layout)
    ).to(device)
    actual = results(lambda leaf: call(ops, kind, here, leaf), here)
    assert_results_close(actual, kind, case)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_tokens_are_channels_last_images(device, kind):
    a, g = torch.rand(2, 2, 6, 4, 5, device=device)
    score, target = torch.rand(2, device=device), torch.rand(2, 1, 9, 8, device=device)
    image = Case("", *(x.to(memory_format=torch.channels_last) for x in (a, g)), score, target,
                 (9, 8), None)  # fmt: skip
    tokens = image._replace(activations=cut_tokens(a), gradients=cut_tokens(g), grid=(4, 5))
    expected = results(lambda leaf: call(ops, kind, image, leaf), image)
    value, gradient = results(lambda leaf: call(ops, kind, tokens, leaf), tokens)
    assert gradient.shape == (2, 20, 6)
    assert torch.equal(value, expected[0])
    assert torch.equal(gradient.transpose(1, 2).reshape(2, 6, 4, 5), expected[1])


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"grid": (4, 6)}, ValueError, r"20 tokens, but a grid of 4 x 6 has 24; cut class and"),
        ({"grid": None}, ValueError, r"\(B, N, C\) with grid=\(h, w\), got \(2, 20, 6\)"),
        ({"grid": 20}, TypeError, r"grid must be a pair \(height, width\) or None, got 20"),
        ({"grid": (4.0, 5)}, TypeError, r"grid\[0\], the height, must be an int, got 4.0"),
        ({"grid": (-4, -5)}, ValueError, "the height, must be at least 1, got -4"),
        ({"activations": torch.rand(2, 6, 4, 5)}, ValueError, "grid is for tokens"),
    ],
)
def test_bad_grids(kind, change, error, message):
    a, g = torch.rand(2, 2, 20, 6)
    case = Case("", a, g, torch.rand(2), torch.rand(2, 1, 9, 8), (9, 8), (4, 5))._replace(**change)
    with pytest.raises(error, match=message):
        call(ops, kind, case, case.activations)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_flat_and_negative_maps_are_zero_without_gradient(device, kind):
    flat, negative = torch.full((2, 3, 7, 7), 0.3), -torch.rand(2, 3, 4, 4) - 0.1
    # Negative activations can make the weights of Grad-CAM++ negative, and the map positive.
    for activations in (flat,) if kind == "grad_cam_plus_plus" else (flat, negative):
        size = (16, 15)
        gradients = torch.ones_like(activations) * 0.37
        target = torch.rand(2, 1, *size)
        case = Case("", activations, gradients, torch.ones(2), target, size, None).to(device)
        value, gradient = results(lambda leaf, case=case: call(ops, kind, case, leaf), case)
        assert not gradient.any()
        if kind == "cam_alignment_loss":
            assert_close(value.cpu(), target.double().square().mean(), "cam_loss")
        else:
            assert not value.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["activations", "gradients", "score"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_nan_fills_the_map_of_its_image_only(device, kind, where, layout):
    if where == "score" and kind != "grad_cam_plus_plus":
        pytest.skip("this kind has no score")
    for shape in ((2, 3, 4, 4), (2, 19, 7, 7)):
        tensors = {name: torch.rand(shape) for name in ("activations", "gradients")}
        tensors["score"] = torch.rand(2)
        tensors[where].view(2, -1)[1, -1] = float("nan")
        case = Case("", target=torch.rand(2, 1, 8, 9), size=(8, 9), grid=None, **tensors)
        case = case._replace(
            activations=case.activations.to(memory_format=layout),
            gradients=case.gradients.to(memory_format=layout),
        ).to(device)
        value, gradient = results(lambda leaf, case=case: call(ops, kind, case, leaf), case)
        assert value[1].isnan().all()
        assert value[0].isfinite().all()
        assert gradient[0].isfinite().all()
        assert gradient[1].isnan().any()


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_scales(device, kind):
    a, g = torch.rand(2, 3, 5, 4, 4)
    case = Case("", a, g, torch.zeros(3), torch.rand(3, 1, 9, 9), (9, 9), None).to(device)

    def at(scale):
        options = {"eps": 0.0} | ({"clamp": 0.0} if kind in ("grad_cam", "layer_cam") else {})
        extra = (case.score,) if kind == "grad_cam_plus_plus" else ()
        op = getattr(ops, kind)
        return op(case.activations * scale, case.gradients, *extra, case.size, **options)

    if kind == "grad_cam_plus_plus":
        scales = [0.5]  # its weights depend on the scale of the activations
        expected = reference.grad_cam_plus_plus(a * 0.5, g, torch.zeros(3), (9, 9), eps=0.0)
    else:
        scales, expected = [1.0, 2.0**-110, 2.0**110], at(1.0)
    for scale in scales:
        assert_close(at(scale).cpu(), expected.cpu(), "cam_map")


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_empty_batch(device, kind):
    empty = torch.empty(0, 3, 4, 4, device=device)
    case = Case("", empty, empty, empty[:, 0, 0, 0], empty[:, :1], (4, 4), None)
    value, gradient = results(lambda leaf: call(ops, kind, case, leaf), case)
    assert value.shape == (() if kind == "cam_alignment_loss" else (0, 1, 4, 4))
    assert gradient.shape == empty.shape
    if kind == "cam_alignment_loss":
        assert value == 0


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_run_gives_the_same_bits(device, kind):
    a, g = torch.randn(2, 4, 300, 9, 9)
    case = Case("", a, g, torch.rand(4), torch.rand(4, 1, 90, 95), (90, 95), None).to(device)
    first = results(lambda leaf: call(ops, kind, case, leaf), case)
    for _ in range(3):
        again = results(lambda leaf: call(ops, kind, case, leaf), case)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_threads_do_not_change_the_result(kind):
    a, g = torch.randn(2, 6, 300, 9, 9)
    case = Case("", a, g, torch.rand(6), torch.rand(6, 1, 90, 95), (90, 95), None)
    before, per_thread = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            per_thread.append(results(lambda leaf: call(ops, kind, case, leaf), case))
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*per_thread, strict=True):
        assert torch.equal(one, three)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**31),
)
def test_maps_lie_between_zero_and_one(shape, size, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    a, g = torch.randn(2, *shape, generator=generator)
    extra = (torch.ones(shape[0]),) if kind == "grad_cam_plus_plus" else ()
    cam = getattr(ops, kind)(a, g, *extra, size, eps=0.0)
    assert (cam >= 0).all()
    assert (cam <= 1).all()
    peaks = cam.amax((1, 2, 3))
    assert ((peaks > 0.99) | (peaks == 0)).all()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_reference_has_the_gradient_that_it_says(kind):
    case = Case(
        "", *torch.rand(2, 2, 3, 3, 4).double(), torch.rand(2).double(),
        torch.rand(2, 1, 5, 7).double(), (5, 7), None,
    )  # fmt: skip
    if kind == "grad_cam_plus_plus":
        pytest.skip("its weights hold the activations constant; see test_grad_cam_plus_plus.py")
    torch.autograd.gradcheck(
        lambda leaf: call(reference, kind, case, leaf), case.activations.requires_grad_()
    )


@pytest.mark.parametrize("kind", ["layer_cam", "hires_cam"])
def test_element_weights_by_hand(kind):
    activations = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[2.0, 1.0], [1.0, 1.0]]]])
    gradients = torch.tensor([[[[1.0, -1.0], [2.0, 0.0]], [[1.0, 3.0], [-8.0, 1.0]]]])
    sums = {"layer_cam": [[3.0, 3.0], [6.0, 1.0]], "hires_cam": [[3.0, 1.0], [0.0, 1.0]]}[kind]
    expected = torch.tensor(sums)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    cam = getattr(ops, kind)(activations, gradients, (2, 2))
    assert_close(cam[0, 0], expected, "cam_map")


def test_mixed_types_are_computed_in_float32():
    a, g = torch.rand(2, 2, 3, 4, 4)
    leaf = a.half().requires_grad_()
    cam = ops.grad_cam(leaf, g, (8, 8))
    assert_close(cam.detach(), reference.grad_cam(a.half(), g, (8, 8)), "cam_map")
    cam.square().sum().backward()
    assert leaf.grad.dtype == torch.float16
    half_target = torch.rand(2, 1, 8, 8).bfloat16()
    loss = ops.cam_alignment_loss(a, g, half_target)
    assert_close(loss, reference.cam_alignment_loss(a, g, half_target), "cam_loss")


def test_gradient_checks_can_fail():
    expected = torch.randn(50)
    for wrong in (expected * 1.001, expected + 0.01, -expected):
        with pytest.raises(AssertionError):
            assert_gradient_close(wrong, expected, "wrong")
