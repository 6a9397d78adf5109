"""What synthetic images are like: their spectra, and how hard they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spectrum:
    """How much of each spatial frequency a set of images has."""

    title: str
    images: int
    magnitude: Tensor
    """(H, W) mean of log10 |F|, zero frequency at [H // 2, W // 2]; float32."""
    frequency: Tensor
    """(R,) cycles per image: 0, 1, ... up to those of the corners."""
    radial: Tensor
    """(R,) mean of ``magnitude`` over the frequencies nearest to each."""


@torch.no_grad()
def spectrum(title: str, images: Tensor) -> Spectrum:
    """The mean log-magnitude spectrum of images (N, C, H, W), over images and channels.

    ``F`` is the discrete Fourier transform divided by sqrt(H W), so that white noise of variance
    one has magnitudes around one at every size. Magnitudes below 1e-6 count as that.
    """
    height, width = images.shape[2:]
    transform = torch.fft.fft2(images.double().cpu(), norm="ortho")
    log = transform.abs().clamp_min(1e-6).log10().mean((0, 1))
    magnitude = torch.fft.fftshift(log)
    y, x = torch.meshgrid(
        torch.arange(height) - height // 2, torch.arange(width) - width // 2, indexing="ij"
    )
    ring = (y.square() + x.square()).double().sqrt().round().long()
    most = int(ring.max())
    radial = torch.stack([magnitude[ring == r].mean() for r in range(most + 1)])
    frequency = torch.arange(most + 1, dtype=torch.float32)
    return Spectrum(title, len(images), magnitude.float(), frequency, radial.float())


def difficulty(logits: Tensor, labels: Tensor) -> Tensor:
    """``1 - p(label)`` of images (N,) by the float network's logits (N, classes); SynQ, I3."""
    p = torch.softmax(logits.double(), 1).gather(1, labels[:, None]).squeeze(1)
    return (1 - p).float()
