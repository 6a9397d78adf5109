"""Images by their Fourier coefficients, in the proportions that natural images have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor


def envelope(height: int, width: int) -> Tensor:
    """What the amplitudes of natural images are like: they fall with the frequency.

    1 / f, and at frequency 0 as at the lowest other one (Olah et al., "Feature Visualization",
    Distill 2017). White noise of unit variance keeps its variance under it.

    Returns:
        (H, W // 2 + 1) float32, of the half plane that ``torch.fft.rfft2`` gives.
    """
    rows = torch.fft.fftfreq(height, dtype=torch.float64, device="cpu")[:, None]
    columns = torch.fft.fftfreq(width, dtype=torch.float64, device="cpu")
    whole = 1 / torch.hypot(rows, columns).clamp_min(1 / max(height, width))
    whole /= whole.square().mean().sqrt()
    return whole[:, : width // 2 + 1].float()


class SpectrumImages:
    """The coefficients over the envelope are the parameters; the labels stay.

    An update moves every frequency as far beside its usual size, where one of pixels adds white
    noise, which the first layers take for more than any image holds.
    """

    drawn: ClassVar[int] = 0

    def __init__(self, start: Tensor, labels: Tensor, *, white: bool = True) -> None:
        """Begin at images (B, C, H, W), float32; put under the envelope if ``white``.

        Labels (B,) are int64.
        """
        self.size = start.shape[2], start.shape[3]
        self.envelope = envelope(*self.size).to(start.device)
        spectrum = torch.fft.rfft2(start, norm="ortho")
        white_spectrum = spectrum if white else spectrum / self.envelope
        self.coefficients = torch.view_as_real(white_spectrum).contiguous().requires_grad_()
        self.labels, self.batch_size = labels, len(labels)

    def parameter_groups(self) -> Iterable[dict[str, Any]]:
        """The coefficients, at the plateau's rate."""
        return [{"params": [self.coefficients]}]

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()

    def images(self, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The images of the coefficients, and the labels."""
        spectrum = torch.view_as_complex(self.coefficients) * self.envelope
        images = torch.fft.irfft2(spectrum, s=self.size, norm="ortho")
        return images.contiguous(memory_format=torch.channels_last), self.labels

    def state(self) -> dict[str, Tensor]:
        """The coefficients."""
        return {"coefficients": self.coefficients.detach()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back the coefficients."""
        self.coefficients.copy_(tensors["coefficients"])
