"""What a loss of images is: its fields are its recipe section, its call the mathematics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from synq_fast.graph import patches

Targets = list[tuple[Tensor, Tensor]]
"""Mean and variance (C,) per BatchNorm layer."""
Reads = Literal["labels", "norms", "attentions", "class token", "earlier", "student"]
"""What a loss needs beside images and logits: labels, the inputs of BatchNorms, what attention
gives, what the class token of every layer looks at, the images of earlier batches, or the quantized
network."""


class Attended(NamedTuple):
    """What one attention showed; windows count as images, and come first."""

    logits: Tensor
    """(..., H, N, M): products of queries and keys, before scale, bias and mask."""
    probabilities: Tensor
    """(..., H, N, M)"""
    output: Tensor
    """(..., H, N, D), head by head."""
    before: int | None = None
    """How many tokens come before the patches, where these are too few to make a square."""

    def before_patches(self, tokens: int) -> int:
        """How many of some tokens, queries or keys, come before the patches."""
        return patches.before_patches(tokens) if self.before is None else self.before


class Enlarged(NamedTuple):
    """What regions of the images showed, each an image of its own (SARDFQ, MSR)."""

    logits: Tensor
    """(R * B, classes): of the first region of each image, then of the second."""
    labels: Tensor
    """(R * B,) int64"""
    places: Tensor
    """(R, B) int64: which of an image's places each region is in."""


@dataclass(frozen=True)
class Seen:
    """What one pass of the teacher over images showed."""

    images: Tensor
    """(B, C, H, W), as the teacher saw them"""
    labels: Tensor
    """(B,) int64"""
    logits: Tensor
    """(B, classes)"""
    features: Tensor
    """(B, D): what the layer that gives the logits reads, its mean over the pixels"""
    norms: tuple[Tensor, ...]
    """The input (B, C, H, W) of every BatchNorm."""
    attentions: tuple[Attended, ...]
    """What each attention showed, in order."""
    running: Targets
    """The statistics that each BatchNorm has stored."""
    student: Tensor | None = None
    """(B, classes) logits of the quantized network, where a loss reads them."""
    student_attentions: tuple[Tensor, ...] = ()
    """(..., H, N, M): its logits in each attention, as those of ``Attended``; with ``student``."""
    enlarged: Enlarged | None = None
    """What regions of the images showed, in steps that look at some."""


@dataclass(frozen=True)
class Start:
    """What a batch of images begins with."""

    labels: Tensor
    """(B,) int64"""
    generator: torch.Generator
    """Of the batch, on the CPU."""
    means: Tensor
    """(classes, D): mean features of each class in earlier batches; zeros where there were none."""
    counts: Tensor
    """(classes,) how many images they are the means of"""
    attentions: tuple[torch.Size, ...] = ()
    """The shape (..., H, N, M) of each attention's probabilities, of two images."""
    places: Tensor | None = None
    """(B, P) int64: the classes of the places within each image that regions are taken from."""


@dataclass(frozen=True)
class Moment:
    """A step of a batch of images."""

    done: float
    """Share of the batch's steps before it, 0 to 1."""
    images: int
    generator: torch.Generator
    """Of the batch, on the CPU."""
    attentions: tuple[torch.Size, ...] = ()
    """As in ``Start``."""


@dataclass(frozen=True)
class ImageLoss(ABC):
    """A part of what images minimize: a frozen dataclass of its recipe's values."""

    reads: ClassVar[frozenset[Reads]] = frozenset()
    whole: ClassVar[bool] = False
    """It needs every patch of an image, also those that ``synthesis.sparse`` would drop."""

    weight: float = 1.0

    def begin(self, start: Start) -> tuple[Tensor, ...]:
        """What the call gets while a batch is optimized; follows from the batch's start alone."""
        return ()

    def draw(self, moment: Moment) -> tuple[Tensor, ...]:
        """What the call gets behind that, anew at every step: always as many tensors, on the CPU.

        A recorded step can neither draw nor see which step it is.
        """
        return ()

    @abstractmethod
    def __call__(self, seen: Seen, *held: Tensor) -> Tensor:
        """The scalar, which ``weight`` multiplies afterwards."""
