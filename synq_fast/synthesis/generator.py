"""A class-conditional generator, and batches of one that is trained as it makes them (GDFQ)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from synq_fast.bank.batches import Filter, filtered
from synq_fast.optimize.named import named, part_of
from synq_fast.runtime.memory import send
from synq_fast.runtime.seeding import generator_for
from synq_fast.synthesis.optimization import ImageOptimization, Terms

_WIDTH = 128


class ClassNorm(nn.Module):
    """BatchNorm with a factor and a summand for each class."""

    def __init__(self, channels: int, classes: int) -> None:
        """Begin as a plain norm."""
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.factor, self.summand = (nn.Embedding(classes, channels) for _ in range(2))
        nn.init.ones_(self.factor.weight)
        nn.init.zeros_(self.summand.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """``x`` (B, C, H, W) normalized, by labels (B,) int64."""
        factor, summand = self.factor(labels), self.summand(labels)
        y: Tensor = self.norm(x) * factor[..., None, None] + summand[..., None, None]
        return y


class ConditionalGenerator(nn.Module):
    """Noise, a linear layer, and convolutions at 1/4, 1/2 and full size, which know the class.

    GDFQ's networks: for CIFAR the noise is multiplied by an embedding of the class, for ImageNet
    each norm has a factor and a summand for each class. Images of any size, and of about zero mean
    and unit variance in each channel.
    """

    def __init__(
        self, latent: int, classes: int, shape: tuple[int, int, int], *, class_norms: bool = False
    ) -> None:
        """Build it.

        Args:
            latent: size of the noise.
            classes: number of labels.
            shape: (C, H, W) of an image.
            class_norms: let the norms know the class, instead of the noise.
        """
        super().__init__()
        channels, self.height, self.width = shape
        self.base = (-(-self.height // 4), -(-self.width // 4))
        self.embedding = None if class_norms else nn.Embedding(classes, latent)
        self.linear = nn.Linear(latent, _WIDTH * self.base[0] * self.base[1])

        def norm(width: int) -> nn.Module:
            return ClassNorm(width, classes) if class_norms else nn.BatchNorm2d(width)

        self.start = norm(_WIDTH)
        self.middle = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            norm(_WIDTH),
            nn.LeakyReLU(0.2),
        )
        self.last = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(_WIDTH, _WIDTH // 2, 3, padding=1),
            norm(_WIDTH // 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(_WIDTH // 2, channels, 3, padding=1),
            nn.Tanh(),
        )
        self.end = nn.BatchNorm2d(channels, affine=False)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Images (B, C, H, W) of noise (B, latent) and labels (B,) int64."""
        x = noise if self.embedding is None else self.embedding(labels) * noise
        x = self.linear(x).unflatten(1, (_WIDTH, *self.base))
        for layer in (self.start, *self.middle, *self.last):
            x = layer(x, labels) if isinstance(layer, ClassNorm) else layer(x)
        images: Tensor = self.end(x[..., : self.height, : self.width])
        return images


class Generated:
    """Images of a generator, with new noise and labels at every step."""

    drawn: ClassVar[int] = 2

    def __init__(
        self,
        network: ConditionalGenerator,
        *,
        latent: int,
        classes: int,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """Prepare; what a step draws depends on the seed and its number alone."""
        self.network = network.to(device)
        self.latent, self.classes, self.batch_size = latent, classes, batch_size
        self.seed, self.device = seed, device

    def parameter_groups(self) -> Iterable[dict[str, Any]]:
        """The network's."""
        return [{"params": list(self.network.parameters())}]

    def draw(self, step: int, count: int | None = None) -> tuple[Tensor, ...]:
        """Noise (count, latent) and labels (count,), by default of a whole batch."""
        count = count or self.batch_size
        generator = generator_for(self.seed, "generator", step)
        noise = torch.randn(
            count, self.latent, generator=generator, dtype=torch.float32, device="cpu"
        )
        labels = torch.randint(self.classes, (count,), generator=generator, device="cpu")
        return send(noise, self.device), send(labels, self.device)

    def images(self, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The network's images of what was drawn."""
        noise, labels = drawn
        images: Tensor = self.network(noise, labels)
        return images.contiguous(memory_format=torch.channels_last), labels

    def state(self) -> dict[str, Tensor]:
        """The network's."""
        return dict(self.network.state_dict())

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back the network's."""
        self.network.load_state_dict(tensors)


@dataclass(eq=False)
class OnlineBatches:
    """Batches of a generator that takes a step of its own for each."""

    optimization: ImageOptimization
    generated: Generated
    batch_size: int
    filter: Filter
    first: int
    """Number of the generator's step that makes batch 0."""
    terms: Terms
    """What the generator minimizes while it makes these batches."""
    part: slice = field(default_factory=lambda: slice(None))
    """Which images of each batch; the generator sees all of them on every rank."""

    @property
    def names(self) -> Sequence[str]:
        """Of the generator's losses."""
        return tuple(f"generator_{name}" for name in self.optimization.names)

    def inputs(self, step: int) -> tuple[Tensor, ...]:
        """Noise and labels of a step."""
        return self.generated.draw(self.first + step, self.batch_size)

    def made(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of the generator; its images from before the update, filtered."""
        self.optimization.terms = self.terms
        terms = self.optimization(*inputs)
        assert self.optimization.seen is not None
        images = filtered(self.optimization.seen[self.part], self.filter)
        return images, inputs[1][self.part], terms

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) of a step."""
        images, labels, _ = self.made(*self.inputs(step))
        return images, labels

    def state(self) -> dict[str, Tensor]:
        """The generator's and its optimizer's."""
        return named("generator", self.optimization.state())

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back a state."""
        self.optimization.restore(part_of(tensors, "generator"))

    def close(self) -> None:
        """Nothing runs in the background."""
