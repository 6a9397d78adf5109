"""The published Grad-CAM object: hooks, checks with a host wait each, and its own passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .published_config import PublishedStepConfig


def class_activation_map(
    activations: Tensor,
    gradients: Tensor,
    size: tuple[int, int],
    *,
    bump_zeros: bool = True,
    check: bool = True,
) -> Tensor:
    """Grad-CAM (B, 1, H, W) in [0, 1] from a layer's output and the gradient of a class score.

    Channel weights are the spatial means of the gradients, clamped at 1e-10 from below, and
    constants to autograd; the map is upsampled bilinearly and stretched to [0, 1] per image.
    """
    while bump_zeros and bool((gradients == 0).any()):
        gradients = gradients + 1e-10
    weights = gradients.mean(dim=(2, 3), keepdim=True).clamp(min=1e-10)
    weighted = (weights * activations).sum(dim=1, keepdim=True)
    upsampled = functional.interpolate(
        functional.relu(weighted), size=size, mode="bilinear", align_corners=False
    )
    low = upsampled.amin(dim=(1, 2, 3), keepdim=True)
    high = upsampled.amax(dim=(1, 2, 3), keepdim=True)
    stretched = (upsampled - low) / (high - low + 1e-10)
    if check:
        for tensor in (activations, gradients, weights, weighted, upsampled, low, high, stretched):
            refuse_nan(tensor, "the class activation map")
    return stretched


def refuse_nan(tensor: Tensor, where: str) -> None:
    """Raise FloatingPointError if ``tensor`` holds a NaN; waits for the device."""
    if bool(torch.isnan(tensor).any()):
        raise FloatingPointError(f"NaN in {where}")


class PublishedGradCam:
    """Grad-CAM of one layer by a forward and a full backward of its own."""

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module,
        config: PublishedStepConfig,
        zero_image: Tensor | None = None,
    ) -> None:
        """Register both hooks and run the model on ``zero_image`` if there is one."""
        self.model, self.config = model, config
        self.activations: Tensor | None = None
        self.gradients: Tensor | None = None
        self.handles = [
            layer.register_forward_hook(self._keep_activations),
            layer.register_full_backward_hook(self._keep_gradients),
        ]
        if zero_image is not None:
            model(zero_image)

    def _keep_activations(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        if self.config.check_hooks:
            refuse_nan(output, "the CAM layer's output")
        self.activations = output

    def _keep_gradients(self, layer: nn.Module, inputs: Any, outputs: Any) -> None:
        if self.config.check_hooks:
            refuse_nan(outputs[0], "the CAM layer's gradient")
        self.gradients = outputs[0]

    def remove(self) -> None:
        """Take both hooks off the layer."""
        for handle in self.handles:
            handle.remove()

    def __call__(self, images: Tensor) -> Tensor:
        """The map (B, 1, H, W) of each image's best class, attached to the model's graph."""
        if self.config.check_parameters:
            for parameter in self.model.parameters():
                refuse_nan(parameter, "the parameters")
                if bool(torch.isinf(parameter).any()):
                    raise FloatingPointError("an infinity in the parameters")
        score = self.model(images).max(dim=1).values.sum()
        self.model.zero_grad()
        score.backward(retain_graph=True)
        assert self.activations is not None and self.gradients is not None
        return class_activation_map(
            self.activations,
            self.gradients,
            (images.shape[-2], images.shape[-1]),
            bump_zeros=self.config.bump_zeros,
            check=self.config.check_intermediates,
        )
