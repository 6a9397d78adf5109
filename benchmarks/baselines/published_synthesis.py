"""The published image synthesis loop (HAST's, as SynQ uses it), rebuilt from its description.

A batch of noise is optimised until a float teacher sees the statistics of its own training data in
it and the wanted labels. The published program also launches every GPU kernel synchronously
(``CUDA_LAUNCH_BLOCKING=1``), which cannot be switched inside a process and is left out here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from .published_augmentation import augment_each, augment_together

Statistics = tuple[Tensor, Tensor]
"""Mean and biased variance of each channel."""


@dataclass(frozen=True)
class PublishedSynthesisConfig:
    """Constants, then switches that cost time and leave the images as they are up to rounding."""

    image_shape: tuple[int, int, int] = (3, 224, 224)
    learning_rate: float = 0.5
    minimum_learning_rate: float = 1e-4
    patience: int = 50
    beta: float = 0.1
    """Weight of the focal class loss."""
    gamma: float = 0.5
    """Exponent of the focal class loss; below 1 its gradient is NaN where a probability is 1."""
    augment_probability: float = 0.5
    """Chance per iteration that all images are cropped and flipped; 0 is published for CIFAR."""

    teacher_parameters_require_grad: bool = True
    """The backward also computes the gradients of the teacher's parameters."""
    copy_to_host: bool = True
    """Both operands of each layer's two distances are copied to the CPU, four copies a layer."""
    augment_one_by_one: bool = True
    """The crops and flips run image by image in Python instead of as one sampling of the batch."""
    host_logging: bool = True
    """Predictions and three scalars are read back at each iteration."""
    leak_hooks: bool = True
    """Hooks of the calibration stage stay and go on collecting; only with layered statistics."""

    @classmethod
    def cifar(cls, **changes: Any) -> PublishedSynthesisConfig:
        """The published setting for 32 x 32 images."""
        config = cls(image_shape=(3, 32, 32), augment_probability=0.0)
        return replace(config, **changes)

    @classmethod
    def costs(cls) -> tuple[str, ...]:
        """Names of the switches."""
        names = [field.name for field in fields(cls)]
        return tuple(names[names.index("teacher_parameters_require_grad") :])

    def lean(self) -> PublishedSynthesisConfig:
        """The same mathematics without the switchable costs."""
        off: dict[str, Any] = dict.fromkeys(self.costs(), False)
        return replace(self, **off)


class _InputStatistics:
    """Collects the statistics of every BatchNorm2d input of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.collected: list[Statistics] = []
        self.layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        self.handles: list[RemovableHandle] = [
            layer.register_forward_hook(self._collect) for layer in self.layers
        ]

    def _collect(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        x = inputs[0]
        self.collected.append((x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)))


class PublishedSynthesis:
    """Optimises one batch of images, one ``iterate`` call at a time."""

    def __init__(
        self,
        teacher: nn.Module,
        labels: Tensor,
        config: PublishedSynthesisConfig,
        layered: Sequence[Statistics] | None = None,
    ) -> None:
        """Start from unit normal noise.

        Args:
            teacher: float model with BatchNorm2d layers; it is copied and left alone.
            labels: wanted classes (B,), int64.
            config: constants and switches.
            layered: statistics of calibration images at each BatchNorm2d input, in module order.
                With them the loss has SynQ's layered term and its weights 0.4 and 0.02.
        """
        self.config, self.labels, self.layered = config, labels, layered
        self.teacher = copy.deepcopy(teacher).eval()
        self.teacher.requires_grad_(config.teacher_parameters_require_grad)
        if layered is not None and config.leak_hooks:
            self._leaked = _InputStatistics(self.teacher)
        self._statistics = _InputStatistics(self.teacher)
        shape = (len(labels), *config.image_shape)
        self.images = torch.randn(shape, device=labels.device).requires_grad_(True)
        self._optimizer = torch.optim.Adam([self.images], lr=config.learning_rate)
        self._schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimizer, patience=config.patience, min_lr=config.minimum_learning_rate
        )
        self.last_record = ""

    def iterate(self) -> Tensor:
        """One iteration; returns its loss, detached."""
        config, layers = self.config, self._statistics.layers
        seen = self.images
        if torch.rand(()) < config.augment_probability:
            augment = augment_each if config.augment_one_by_one else augment_together
            seen = augment(seen, scale=(0.4, 1.0))
        self._statistics.collected.clear()
        logits = self.teacher(seen)
        statistics = self._statistics.collected
        targets = [(layer.running_mean, layer.running_var) for layer in layers]
        matching = self._distance(statistics, targets) / len(layers)
        log_probability = functional.log_softmax(logits, dim=1)
        chosen = log_probability.gather(1, self.labels[:, None]).squeeze(1)
        focal = config.beta * ((1 - chosen.exp()) ** config.gamma * -chosen).mean()
        focal = focal.to(matching.device)
        loss = matching + focal
        if self.layered is not None:
            start = (len(layers) + 2) // 2 - 2
            distance = self._distance(statistics[start:], self.layered[start:])
            layered = distance / (len(layers) * len(self.labels))
            loss = 0.4 * matching + focal + 0.02 * layered
        self._optimizer.zero_grad()
        self.teacher.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step(loss.item())
        if config.host_logging:
            predicted = functional.softmax(logits.detach(), dim=1).cpu().argmax(dim=1)
            right = (predicted == self.labels.cpu()).float().mean().item()
            self.last_record = f"{loss.item():.4f} {matching.item():.4f} {right:.4f}"
        return loss.detach()

    def _distance(self, seen: Sequence[Statistics], wanted: Sequence[Any]) -> Tensor:
        total = torch.zeros(())
        for layer, target in zip(seen, wanted, strict=True):
            for one, other in zip(layer, target, strict=True):
                pair = (one.cpu(), other.cpu()) if self.config.copy_to_host else (one, other)
                total = total.to(pair[0].device) + functional.mse_loss(*pair)
        return total


def synthesize(
    teacher: nn.Module,
    labels: Tensor,
    steps: int,
    config: PublishedSynthesisConfig | None = None,
) -> Tensor:
    """Images (B, *image_shape) after ``steps`` iterations, with NaN replaced by zero."""
    run = PublishedSynthesis(teacher, labels, config or PublishedSynthesisConfig())
    for _ in range(steps):
        run.iterate()
    return run.images.detach().nan_to_num(0.0)
