"""What the class activation maps have in common: tokens, ties, scales, types."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synq_fast import ops, reference
from synq_fast.testing import CASES
from synq_fast.testing.cases._maps import cut_tokens
from synq_fast.testing.conformance import run
from tests.ops.backends import device
from tests.tolerances import assert_close

__all__ = ["device"]  # used by pytest

KINDS = ("grad_cam", "grad_cam_plus_plus", "layer_cam", "hires_cam")
ALL_KINDS = (*KINDS, "cam_alignment_loss")


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


def test_ties_matter():
    """The tie cases would notice a gradient that goes to one pixel alone."""
    samples = {sample.reason: sample for sample in CASES["grad_cam"].inputs()}
    a, g = samples["ties: two corners"].tensors
    leaf = a.clone().requires_grad_()
    (shared,) = torch.autograd.grad(reference.grad_cam(leaf, g, (6, 6))[0].sum(), leaf)
    assert_close(shared[0, 0, 0, 0], shared[0, 0, 2, 2], "cam_map")
    assert shared[0, 0, 0, 0].abs() > 0.1


def arguments(kind, count=2, size=(9, 8)):
    """What a kind takes beside activations and gradients: more tensors, and the map's size."""
    if kind == "cam_alignment_loss":
        return (torch.rand(count, 1, *size),), {}
    return ((torch.rand(count),) if kind == "grad_cam_plus_plus" else ()), {"size": size}


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_tokens_are_channels_last_images(device, kind):
    a, g = torch.rand(2, 2, 6, 4, 5, device=device)
    rest, options = arguments(kind)
    rest = tuple(x.to(device) for x in rest)
    images = tuple(x.to(memory_format=torch.channels_last) for x in (a, g))
    tokens = cut_tokens(a), cut_tokens(g)

    def call(*tensors, **more):
        return CASES[kind].call(ops, *tensors, **options, **more)

    expected = run(call, (*images, *rest), {}, 1)
    actual = run(call, (*tokens, *rest), {"grid": (4, 5)}, 1)
    ((gradient,),) = actual.gradients.values()
    assert gradient.shape == (2, 20, 6)
    assert torch.equal(actual.values[0], expected.values[0])
    ((of_image,),) = expected.gradients.values()
    assert torch.equal(gradient.transpose(1, 2).reshape(2, 6, 4, 5), of_image)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(
    ("grid", "shape", "error", "message"),
    [
        ((4, 6), (2, 20, 6), ValueError, r"20 tokens, but a grid of 4 x 6 has 24; cut class and"),
        (None, (2, 20, 6), ValueError, r"\(B, N, C\) with grid=\(h, w\), got \(2, 20, 6\)"),
        (20, (2, 20, 6), TypeError, r"grid must be a pair \(height, width\) or None, got 20"),
        ((4.0, 5), (2, 20, 6), TypeError, r"grid\[0\], the height, must be an int, got 4.0"),
        ((-4, -5), (2, 20, 6), ValueError, "the height, must be at least 1, got -4"),
        ((4, 5), (2, 6, 4, 5), ValueError, "grid is for tokens"),
    ],
)
def test_bad_grids(kind, grid, shape, error, message):
    rest, options = arguments(kind)
    with pytest.raises(error, match=message):
        CASES[kind].call(ops, torch.rand(shape), torch.rand(2, 20, 6), *rest, grid=grid, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_scales(device, kind):
    a, g = torch.rand(2, 3, 5, 4, 4, device=device)
    clamp = {"clamp": 0.0} if kind in ("grad_cam", "layer_cam") else {}
    extra = (torch.zeros(3, device=device),) if kind == "grad_cam_plus_plus" else ()
    # The weights of Grad-CAM++ depend on the scale of the activations.
    scales = [0.5] if extra else [1.0, 2.0**-110, 2.0**110]
    cpu = [x.cpu() for x in (a * scales[0], g, *extra)]
    expected = getattr(reference, kind)(*cpu, (9, 9), eps=0.0, **clamp)
    for scale in scales:
        cam = getattr(ops, kind)(a * scale, g, *extra, (9, 9), eps=0.0, **clamp)
        assert_close(cam.cpu(), expected, "cam_map")


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
