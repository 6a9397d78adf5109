"""The maps of the papers, beside pytorch-grad-cam and torchcam on trained networks."""

import pytest
import torch

from synq_fast import ops
from tests.cam_libraries import (
    LAYERS,
    NETWORKS,
    network,
    pytorch_grad_cam,
    scaled_cases,
    seen,
    torchcam,
)
from tests.ops.backends import device
from tests.tolerances import TOLERANCES, assert_close

__all__ = ["device"]  # used by pytest

KINDS = ("grad_cam", "grad_cam_plus_plus", "layer_cam", "hires_cam")
# What makes each op the paper's.
OPTIONS = {
    "grad_cam": {"clamp": None, "eps": 0.0},
    "grad_cam_plus_plus": {},
    "layer_cam": {"clamp": 0.0, "eps": 0.0},
    "hires_cam": {"eps": 0.0},
}


def our_map(kind, tensors, **options):
    a, g, score = tensors
    extra = (score,) if kind == "grad_cam_plus_plus" else ()
    return getattr(ops, kind)(a, g, *extra, tuple(a.shape[2:]), **options).cpu()


def rounding(kind, tensors, expected):
    """What float32 may add to a map's error, as a factor on its tolerance.

    Grad-CAM++ divides at every position; activations before a ReLU bring its denominators close
    to zero, and one rounding of each input shows how much that amplifies.
    """
    if kind != "grad_cam_plus_plus":
        return 1
    generator = torch.Generator().manual_seed(0)
    rounded = [
        x.double() * (1 + 2.0**-24 * (2 * torch.randint(2, x.shape, generator=generator) - 1))
        for x in tensors[:2]
    ]
    moved = (pytorch_grad_cam(kind, *rounded) - expected).abs().max().item()
    return 2 + 10 * moved / TOLERANCES["cam_map"].atol


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_pytorch_grad_cam(device, kind, name):
    network(name)
    for _, tensors in scaled_cases((name,)):
        expected = pytorch_grad_cam(kind, tensors.activations, tensors.gradients)
        factor = rounding(kind, tensors, expected)
        here = [x.to(device) for x in tensors]
        cam = our_map(kind, here, **OPTIONS[kind])
        assert_close(cam, expected, "cam_map", factor=factor)
        channels_last = [x.to(memory_format=torch.channels_last) for x in here[:2]]
        cam = our_map(kind, [*channels_last, here[2]], **OPTIONS[kind])
        assert_close(cam, expected, "cam_map", factor=factor)
        cam = our_map(kind, [x.double() for x in here], **OPTIONS[kind])
        assert_close(cam, expected, "float64")


@pytest.mark.parametrize("kind", ["grad_cam", "layer_cam"])
@pytest.mark.parametrize("name", NETWORKS)
def test_torchcam(device, kind, name):
    for layer in LAYERS:
        expected = torchcam(kind, name, layer)
        here = [x.to(device) for x in seen(name, layer)]
        assert_close(our_map(kind, here, **OPTIONS[kind]), expected, "cam_map")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_clamp_is_not_the_papers(name):
    """The comparison notices the clamp of SynQ: these layers have negative weights."""
    for layer in LAYERS:
        tensors = seen(name, layer)
        expected = pytorch_grad_cam("grad_cam", tensors.activations, tensors.gradients)
        assert (our_map("grad_cam", tensors) - expected).abs().max() > 0.01


@pytest.mark.parametrize("name", NETWORKS)
def test_alignment_with_the_papers_map(device, name):
    a, g, _ = seen(name, "layer3.2")
    target = pytorch_grad_cam("grad_cam", a, g)
    a, g, here = a.to(device), g.to(device), target.float().to(device)
    assert_close(ops.cam_alignment_loss(a, g, here, clamp=None, eps=0.0).cpu(), 0.0, "cam_loss")
    flipped = here.flip(-1)
    loss = ops.cam_alignment_loss(a, g, flipped, clamp=None, eps=0.0).cpu()
    assert_close(loss, (target - target.flip(-1)).square().mean(), "cam_loss")
    assert (loss - ops.cam_alignment_loss(a, g, flipped).cpu()).abs() > 1e-4


def test_the_default_scale_of_a_loss_needs_no_other_eps():
    """With the default eps the paper's map agrees as well, where gradients are not scaled down."""
    tensors = seen("digits", "layer3.2")
    expected = pytorch_grad_cam("grad_cam", tensors.activations, tensors.gradients)
    assert_close(our_map("grad_cam", tensors, clamp=None), expected, "cam_map")
