"""Class activation maps of pytorch-grad-cam and torchcam, before resizing, on real networks."""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch

from synq_fast.models import cifar_resnet20, load_teacher
from tests.conftest import data_root

NETWORKS = ("random", "digits", "cifar10")
LAYERS = ("layer1.2", "layer2.2", "layer3.1.conv2", "layer3.2")
SCALES = (1e-8, 1e-3, 1.0, 1e3, 1e8)
CLASSES = [3, 7]


class Seen(NamedTuple):
    """What a library's hooks saw of one layer, and the scores of the chosen classes."""

    activations: torch.Tensor
    gradients: torch.Tensor
    score: torch.Tensor


@cache
def network(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """Returns a network and two images; skips where its data is absent."""
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(2, 3, 32, 32, generator=generator)
    if name == "cifar10":
        weights = data_root() / "cifar10_resnet20.safetensors"
        data = data_root() / "cifar10_test_1017.npz"
        if not (weights.is_file() and data.is_file()):
            pytest.skip("the CIFAR-10 ResNet-20 and its images are not in SYNQ_FAST_DATA")
        teacher = load_teacher("cifar10-resnet20", weights=weights)
        with np.load(data) as arrays:
            images = torch.from_numpy(arrays["images"][:2]).permute(0, 3, 1, 2) / 255
        images = teacher.normalize(images)
    elif name == "digits":
        teacher = load_teacher("digits-resnet20")
        images = torch.rand(2, *teacher.input_shape, generator=generator)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return cifar_resnet20().eval(), images
    return teacher.module.requires_grad_(), images


@cache
def seen(name: str, layer: str) -> Seen:
    """Returns what the hooks of pytorch-grad-cam see of a layer."""
    library = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    module, images = network(name)
    with library.GradCAM(module, [module.get_submodule(layer)]) as cam:
        cam(images, [targets.ClassifierOutputTarget(index) for index in CLASSES])
        hooks = cam.activations_and_grads
        score = cam.outputs.detach()[range(2), CLASSES]
        return Seen(hooks.activations[0].detach(), hooks.gradients[0].detach(), score)


def normalised(cam: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Returns maps `(B, 1, h, w)` after ReLU, from 0 to 1, in float64."""
    cam = torch.as_tensor(cam).double().relu()[:, None]
    low, peak = cam.amin((2, 3), keepdim=True), cam.amax((2, 3), keepdim=True)
    return torch.where(peak > low, (cam - low) / (peak - low), 0.0)


def pytorch_grad_cam(kind: str, activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Returns what pytorch-grad-cam makes of these in float64.

    Eq. 19 of Grad-CAM++ does not change with A / k and k g; the eps of 1e-6 that the library adds
    to it does, so it is asked for k that makes eps vanish.
    """
    library = pytest.importorskip("pytorch_grad_cam")
    names = {
        "grad_cam": "GradCAM",
        "grad_cam_plus_plus": "GradCAMPlusPlus",
        "layer_cam": "LayerCAM",
        "hires_cam": "HiResCAM",
    }
    a, g = activations.double(), gradients.double()
    if kind == "grad_cam_plus_plus":
        k = 1e12 / g.abs().max()
        a, g = a / k, g * k
    module, _ = network("random")
    with getattr(library, names[kind])(module, [module.layer1]) as cam:
        return normalised(cam.get_cam_image(None, None, None, a.numpy(), g.numpy(), False))


def torchcam(kind: str, name: str, layer: str) -> torch.Tensor:
    """Returns the map that torchcam makes of a network's layer.

    It is no witness for Grad-CAM++: it sums A g^3, and divides a copy that it throws away.
    """
    methods = pytest.importorskip("torchcam.methods")
    module, images = network(name)
    extractor = {"grad_cam": methods.GradCAM, "layer_cam": methods.LayerCAM}[kind]
    with extractor(module, layer, input_shape=tuple(images.shape[1:])) as cam:
        (raw,) = cam(CLASSES, module(images), normalized=False)
    return normalised(raw.detach())


def scaled_cases(
    networks: tuple[str, ...] = NETWORKS, layers: tuple[str, ...] = LAYERS
) -> Iterator[tuple[str, Seen]]:
    """Yields layers of networks under several scales of the loss."""
    for name in networks:
        for layer in layers:
            tensors = seen(name, layer)
            for scale in SCALES:
                yield (
                    f"{name}, {layer}, loss times {scale:g}",
                    tensors._replace(gradients=tensors.gradients * scale),
                )
