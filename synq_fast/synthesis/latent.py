"""Images of latents and a network that belong to one batch, both optimized (Genie)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from synq_fast.optimize.named import named, part_of
from synq_fast.runtime.defaults import plain_defaults
from synq_fast.synthesis.parametrization import Decaying
from synq_fast.synthesis.settings import Latent

_WIDTH = 128


class LatentNetwork(nn.Module):
    """A linear layer and convolutions at half and full size (Genie, arXiv 2212.04780, GENIE-D).

    Images of any size, of zero mean and unit variance in each channel over a batch.
    """

    def __init__(self, latent: int, shape: tuple[int, int, int]) -> None:
        """Build it for latents of a size and images (C, H, W)."""
        super().__init__()
        channels, self.height, self.width = shape
        # A quarter of the image's side, and upsampled twice.
        self.base = (-(-self.height // 4), -(-self.width // 4))
        self.linear = nn.Linear(latent, _WIDTH * self.base[0] * self.base[1])
        self.layers = nn.Sequential(
            nn.BatchNorm2d(_WIDTH),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(_WIDTH, _WIDTH // 2, 3, padding=1),
            nn.BatchNorm2d(_WIDTH // 2),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(_WIDTH // 2, channels, 3, padding=1),
            nn.Tanh(),
        )
        self.end = nn.BatchNorm2d(channels, affine=False)

    def forward(self, latents: Tensor) -> Tensor:
        """Images (B, C, H, W) of latents (B, D)."""
        x = self.linear(latents).unflatten(1, (_WIDTH, *self.base))
        images: Tensor = self.end(self.layers(x)[..., : self.height, : self.width])
        return images


class LatentImages:
    """Latents (B, D) and their network are the parameters; the labels stay."""

    drawn: ClassVar[int] = 0

    def __init__(
        self,
        recipe: Latent,
        labels: Tensor,
        shape: tuple[int, int, int],
        generator: torch.Generator,
    ) -> None:
        """Draw latents and weights from a CPU generator; labels (B,) say the device."""
        device = labels.device
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.set_state(generator.get_state())
            with plain_defaults():
                network = LatentNetwork(recipe.size, shape)
                latents = torch.randn(len(labels), recipe.size, dtype=torch.float32)
            generator.set_state(torch.default_generator.get_state())
        self.network = network.to(device)
        self.latents = latents.to(device).requires_grad_()
        self.recipe, self.labels, self.batch_size = recipe, labels, len(labels)

    def parameter_groups(self) -> Iterable[dict[str, Any]]:
        """Latents at the plateau's rate, the network at its own, which decays."""
        recipe = self.recipe
        own = Decaying(recipe.learning_rate, recipe.decay, recipe.decay_every)
        return [
            {"params": [self.latents]},
            {"params": list(self.network.parameters()), "decaying": own},
        ]

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()

    def images(self, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The network's images of the latents, and the labels."""
        images: Tensor = self.network(self.latents)
        return images.contiguous(memory_format=torch.channels_last), self.labels

    def state(self) -> dict[str, Tensor]:
        """Latents and network."""
        return {"latents": self.latents.detach(), **named("network", self.network.state_dict())}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put both back."""
        self.latents.copy_(tensors["latents"])
        self.network.load_state_dict(part_of(tensors, "network"))
