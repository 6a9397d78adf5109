"""What a page shows, as plain values: measured elsewhere, read by figures and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from synq_fast.reporting.accuracy import Accuracy
from synq_fast.reporting.images import Spectrum
from synq_fast.reporting.layers import Layers
from synq_fast.reporting.maps import Maps


@dataclass(frozen=True)
class Missing:
    """Something that the page would show."""

    what: str
    why: str
    """And what brings it."""


@dataclass(frozen=True)
class Images:
    """Synthetic images, those of one bank or of one generator."""

    runs: tuple[str, ...]
    """Whose they are, by their widths."""
    count: int
    """How many there are; 0: a generator draws as many as are asked for."""
    before: Tensor
    """(N, C, H, W) on a scale from 0 to 1, not clipped."""
    after: Tensor
    """The same through the low-pass filter."""
    labels: Tensor
    """(N,) int64."""
    filter: str
    """In words."""
    cutoff: float | None
    """Cycles per image; None without a filter."""
    spectra: tuple[Spectrum, ...]
    difficulty: Tensor | None
    """(M,) of as many images as were judged."""
    threshold: float | None
    """Of the difficulty, where the recipe has one in use."""
    records: tuple[dict[str, Any], ...] = ()
    """Of making them."""


@dataclass(frozen=True)
class Agreement:
    """The quantized network beside the float one, on synthetic images."""

    images: int
    same: float
    """Share of the images whose strongest class is the same."""
    divergence: float
    """Mean KL(float || quantized) in nats."""


@dataclass
class RunReport:
    """One run, at one width."""

    bits: str
    """What it is called: its widths, and what else tells it from the others."""
    seed: str
    recipe: str
    """Its name."""
    recipe_text: str
    """TOML."""
    state: str
    """Empty where the run is finished, else how far it came."""
    accuracies: tuple[Accuracy, ...]
    coverage: Mapping[str, Any]
    """``Coverage.as_dict``; empty where it is not known."""
    average_bits: Mapping[str, float]
    """Where widths were found for an average."""
    seconds: Mapping[str, float]
    records: list[dict[str, Any]]
    """Of training; those of images as well where no images can be shown yet."""
    about: Mapping[str, Any]
    """``about.json``."""
    kernels: Mapping[str, Any]
    layers: Layers | None = None
    maps: Maps | None = None
    agreement: Agreement | None = None


@dataclass
class Report:
    """A page."""

    title: str
    network: str
    runs: list[RunReport]
    images: list[Images] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of what made the page."""
