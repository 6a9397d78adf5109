"""The floor: the passes through an unquantized network that a step cannot do without."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from synq_fast.runtime.memory_format import channels_last
from synq_fast.runtime.replay import Replayed


def _copy(module: nn.Module, *, trained: bool) -> nn.Module:
    return channels_last(copy.deepcopy(module).eval().requires_grad_(trained))


def recorded(
    passes: Callable[[], tuple[Tensor, ...]], device: torch.device
) -> Callable[[], object]:
    """On a GPU the passes as a CUDA graph, so that the host costs nothing; else as they are."""
    if device.type != "cuda":
        return passes
    # One number of each result keeps all of the work.
    return Replayed(lambda: torch.stack([x.flatten()[0] for x in passes()]), device)


def plain_step(module: nn.Module, images: Tensor) -> Callable[[], object]:
    """The 9F of a fine-tuning step, channels_last, with the sum of the logits as its loss.

    Teacher forward of the clean and the moved images (2F), student forward of both (2F), gradient
    to the clean images (1F), one joint backward to the parameters (4F).
    """
    teacher, student = _copy(module, trained=False), _copy(module, trained=True)
    parameters = list(student.parameters())
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> tuple[Tensor, ...]:
        with torch.no_grad():
            teacher(images)
            teacher(images)
        seen = images.detach().requires_grad_()
        clean = student(seen).sum()
        (slope,) = torch.autograd.grad(clean, seen, retain_graph=True)
        total = clean + student(images).sum()
        return (slope, *torch.autograd.grad(total, parameters))

    return recorded(step, images.device)


def plain_synthesis(module: nn.Module, images: Tensor) -> Callable[[], object]:
    """The 2F of a synthesis iteration: a forward and the gradient to the images, channels_last."""
    teacher = _copy(module, trained=False)
    images = images.contiguous(memory_format=torch.channels_last)

    def iterate() -> tuple[Tensor, ...]:
        seen = images.detach().requires_grad_()
        gradients: tuple[Tensor, ...] = torch.autograd.grad(teacher(seen).sum(), seen)
        return gradients

    return recorded(iterate, images.device)
