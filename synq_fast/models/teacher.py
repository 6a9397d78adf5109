"""The full-precision model with what is needed to feed it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from synq_fast.errors import ModelError


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
    """

    module: nn.Module
    name: str
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int

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
        mean = torch.tensor(self.mean, device=device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=device).view(-1, 1, 1)
        return lambda images: (images.float() - mean) / std

    def denormalize(self, inputs: Tensor) -> Tensor:
        """Undo `normalize`; the result is not clipped to 0..1."""
        mean = torch.tensor(self.mean, device=inputs.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=inputs.device).view(-1, 1, 1)
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
    input_shape: tuple[int, ...],
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    num_classes: int | None = None,
) -> Teacher:
    """Freeze `module`, run it once on zeros and describe it as a `Teacher`.

    Args:
        module: the classifier; set to eval mode and frozen in place.
        name: shown to the user.
        input_shape: (C, H, W).
        mean: per channel on a 0..1 scale; None is 0, no shift.
        std: per channel on a 0..1 scale; None is 1, no scaling.
        num_classes: checked against the model's output when given.

    Raises:
        ModelError: the shape or the normalisation is malformed, the model does not run on an input
            of this shape, or its output is not a (B, num_classes) tensor.
    """
    shape = _checked_shape(input_shape)
    mean = _per_channel(mean, 0.0, shape[0], "mean")
    std = _per_channel(std, 1.0, shape[0], "std")
    if min(std) <= 0:
        raise ModelError(f"std must be positive in every channel, got {std}")
    module.eval().requires_grad_(False)
    classes = _count_classes(module, name, shape)
    if num_classes is not None and num_classes != classes:
        raise ModelError(f"{name} has {classes} classes, but num_classes={num_classes} was given")
    return Teacher(module, name, shape, mean, std, classes)


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    values = tuple(shape)
    if len(values) != 3 or any(type(v) is not int or v < 1 for v in values):
        raise ModelError(
            f"input_shape must be (channels, height, width), three positive integers, got {shape}"
        )
    return values


def _per_channel(
    values: tuple[float, ...] | None, default: float, channels: int, what: str
) -> tuple[float, ...]:
    if values is None:
        return (default,) * channels
    values = tuple(float(v) for v in values)
    if len(values) != channels:
        raise ModelError(
            f"{what} needs one value per channel: {len(values)} given, the input has {channels}"
        )
    if not torch.tensor(values).isfinite().all():
        raise ModelError(f"{what} must be finite, got {values}")
    return values


def _count_classes(module: nn.Module, name: str, shape: tuple[int, int, int]) -> int:
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    zeros = torch.zeros(2, *shape, device=module_device(module), dtype=dtype)
    try:
        with torch.no_grad():
            output = module(zeros)
    except Exception as error:
        raise ModelError(
            f"{name} does not run on an input of shape (2, {', '.join(map(str, shape))}): {error}; "
            "check input_shape"
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[0] != 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            f"{name} is not a classifier: for 2 images it returned {got}, expected one tensor of "
            "logits of shape (2, classes); wrap the model so that forward returns its logits"
        )
    return output.shape[1]
