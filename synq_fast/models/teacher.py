"""The full-precision model with what is needed to feed it."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from synq_fast.arguments import whole_number
from synq_fast.errors import ModelError
from synq_fast.models.probing import settled_classes


@dataclass(frozen=True)
class Teacher:
    """A full-precision classifier, in eval mode and without gradients on its parameters.

    Attributes:
        module: maps normalised images (B, C, H, W) to logits (B, num_classes).
        name: how it was asked for, or the class name of a user's module.
        input_shape: (C, H, W) of one image.
        mean: per channel, on images scaled to 0..1.
        std: per channel, on images scaled to 0..1.
        num_classes: number of logits.
        options: what a builder was called with; empty for a user's module.
        source: the checkpoint that the weights were read from, where there was one.
    """

    module: nn.Module
    name: str
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Take numbers of any library; a teacher is compared, hashed and written as plain ones.

        Raises:
            ModelError: the shape or the normalisation is malformed.
        """
        shape = checked_shape(self.input_shape)
        values = {
            "input_shape": shape,
            "mean": _per_channel(self.mean, 0.0, shape[0], "mean"),
            "std": _per_channel(self.std, 1.0, shape[0], "std"),
        }
        if min(values["std"]) <= 0:
            raise ModelError(f"std must be positive in every channel, got {values['std']}")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def device(self) -> torch.device:
        """The device of the parameters (CPU for a model without any)."""
        return module_device(self.module)

    def example(self) -> Tensor:
        """Two black images, normalised no further: zeros (2, C, H, W) on the device."""
        return torch.zeros(2, *self.input_shape, dtype=torch.float32, device=self.device)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn images (B, C, H, W) on a 0..1 scale into the model's input, in float32."""
        return self.normalizer(images.device)(images)

    def normalizer(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """`normalize` for many batches on a device, without a transfer for each."""
        mean = torch.tensor(self.mean, dtype=torch.float32, device=device).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=device).view(-1, 1, 1)
        return lambda images: (images.float() - mean) / std

    def valid_range(self) -> tuple[Tensor, Tensor]:
        """What `normalize` makes of 0 and of 1 in each channel: (C, 1, 1) each, on the device."""
        ends = torch.tensor([0.0, 1.0], dtype=torch.float32, device=self.device)
        low, high = self.normalize(ends.view(2, 1, 1, 1).expand(2, len(self.mean), 1, 1))
        return low, high

    def known_range(self) -> tuple[Tensor, Tensor] | None:
        """`valid_range` where a normalisation was given, else None.

        A module of one's own of which nothing was said may read anything.
        """
        given = set(self.mean) != {0.0} or set(self.std) != {1.0}
        return self.valid_range() if given else None

    def denormalize(self, inputs: Tensor) -> Tensor:
        """Undo `normalize`; the result is not clipped to 0..1."""
        mean = torch.tensor(self.mean, dtype=torch.float32, device=inputs.device).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=inputs.device).view(-1, 1, 1)
        return inputs.float() * std + mean

    def to(self, device: torch.device | str) -> "Teacher":
        """Move the module to a device, in place, and return the teacher."""
        return replace(self, module=self.module.to(device))


def module_device(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter or buffer, CPU when it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def make_teacher(
    module: nn.Module,
    name: str,
    input_shape: Iterable[int],
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
    num_classes: int | None = None,
) -> Teacher:
    """Freeze `module`, run it on random images and describe it as a `Teacher`.

    Args:
        module: the classifier; set to eval mode, frozen and freed of hooks in place.
        name: shown to the user.
        input_shape: (C, H, W).
        mean: per channel on a 0..1 scale; None is 0, no shift.
        std: per channel on a 0..1 scale; None is 1, no scaling.
        num_classes: checked against the model's output when given.

    Raises:
        ModelError: the shape or the normalisation is malformed, the model does not run on an input
            of this shape, its output is not a (B, num_classes) tensor with two classes or more, or
            hooks or chance change it.
    """
    shape = checked_shape(input_shape)
    means = _per_channel(mean, 0.0, shape[0], "mean")
    deviations = _per_channel(std, 1.0, shape[0], "std")
    module.eval().requires_grad_(False)
    classes = settled_classes(module, name, shape)
    if num_classes is not None and num_classes != classes:
        raise ModelError(f"{name} has {classes} classes, but num_classes={num_classes} was given")
    return Teacher(module, name, shape, means, deviations, classes)


def checked_shape(shape: Iterable[int]) -> tuple[int, int, int]:
    """(C, H, W) as Python ints, from any sequence of three positive integers.

    Raises:
        ModelError: it is none.
    """
    try:
        channels, height, width = (whole_number("input_shape", size, 1) for size in shape)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"input_shape must be (channels, height, width), three positive integers, got {shape!r}"
        ) from error
    return channels, height, width


def _per_channel(
    given: Iterable[float] | None, default: float, channels: int, what: str
) -> tuple[float, ...]:
    if given is None:
        return (default,) * channels
    try:
        values = tuple(float(v) for v in given)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{what} must be one number per channel, got {given!r}") from error
    if len(values) != channels:
        raise ModelError(
            f"{what} needs one value per channel: {len(values)} given, the input has {channels}"
        )
    if not all(map(math.isfinite, values)):
        raise ModelError(f"{what} must be finite, got {values}")
    return values
