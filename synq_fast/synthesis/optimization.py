"""Optimizing images, iteration by iteration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synq_fast.bank.crops import crop, random_crops
from synq_fast.bank.rolls import random_roll, roll
from synq_fast.graph.swing import Swing
from synq_fast.optimize.loop import Advice, Loop, Plain
from synq_fast.optimize.named import named, part_of
from synq_fast.optimize.optimizer_state import optimizer_tensors, restore_optimizer
from synq_fast.optimize.plateau import Plateau
from synq_fast.runtime.memory import send
from synq_fast.runtime.precision import tensor_float32
from synq_fast.storage.checkpoint_file import CheckpointFile
from synq_fast.synthesis.draws import Draws
from synq_fast.synthesis.parametrization import Parametrization
from synq_fast.synthesis.sparse import Dropping

LOOK_EVERY = 10
Terms = Callable[..., Mapping[str, Tensor]]
"""Named scalar losses of images (B, C, H, W) and labels (B,); where something is drawn for each
step, also of the images as they are, neither moved nor cropped, and of what was drawn."""
SYNTHESIS = Advice(
    "synthesis",
    memory="free memory or lower synthesis.batch_size",
    finite="Lower synthesis.learning_rate, or check the teacher for NaN weights",
    trained="images",
)


@dataclass(frozen=True)
class Schedule:
    """How long, and with which rates: the rate falls to a tenth when the loss stops improving."""

    steps: int
    learning_rate: float
    min_learning_rate: float
    patience: int
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Augmentation:
    """What the terms see instead of the images."""

    probability: float
    """Share of the iterations that see every image cropped and mirrored."""
    scale: tuple[float, float]
    """Smallest and largest share of the area that such a crop keeps."""
    roll: int = 0
    """Pixels that all images are moved by at most, in every iteration."""


class ImageOptimization(Plain):
    """Minimizes a sum of terms of images with Adam; an iteration of a ``Loop``.

    Nothing waits for the device: the schedule lives on it, and what chance decides is drawn on
    the host.
    """

    def __init__(
        self,
        parametrization: Parametrization,
        terms: Terms,
        schedule: Schedule,
        generator: torch.Generator,
        device: torch.device,
        *,
        augmentation: Augmentation | None = None,
        swings: Sequence[Swing] = (),
        dropping: Dropping | None = None,
        draws: Draws | None = None,
        precision: str = "float32",
    ) -> None:
        """Prepare.

        Args:
            parametrization: gives the images.
            terms: of the (augmented) images.
            schedule: rates.
            generator: CPU generator of the augmentation.
            device: where the images are.
            augmentation: what the terms see instead of the images; by default nothing else.
            swings: what shifts the inputs of the teacher's convolutions, anew in each step.
            dropping: what drops patches of the images, whose pixels are the parameters.
            draws: what the terms are given anew in each step.
            precision: of products and convolutions on a GPU, "float32" or "tf32".
        """
        self.parametrization, self.terms, self.schedule = parametrization, terms, schedule
        self.generator, self.augmentation, self.device = generator, augmentation, device
        self.swings, self.precision, self.dropping = swings, precision, dropping
        self.draws = draws
        rate = torch.tensor(schedule.learning_rate, dtype=torch.float32, device=device)
        self.plateau = Plateau(rate, schedule.patience, schedule.min_learning_rate)
        groups = [
            {**group, "lr": torch.zeros_like(rate)} if "decaying" in group else group
            for group in parametrization.parameter_groups()
        ]
        self.optimizer = torch.optim.Adam(
            groups,
            rate,
            betas=schedule.betas,
            fused=True,
            capturable=True,
        )
        self.names: tuple[str, ...] = ()
        self.seen: Tensor | None = None
        """The images (B, C, H, W) of the last call, before its update and its crops."""

    def prepare(self, step: int) -> tuple[Tensor, ...]:
        """What the parametrization and the terms draw, patches that are left, a move, crops."""
        dropping = self.dropping
        if dropping is not None and dropping.due(step):
            self._drop(dropping, step)
        for group in self.optimizer.param_groups:
            if "decaying" in group:
                group["lr"].fill_(group["decaying"].at(step))
        for swing in self.swings:
            swing.draw(self.generator)
        drawn = self.parametrization.draw(step)
        if dropping is not None:
            drawn = *drawn, *dropping.inputs()
        if self.draws is not None:
            drawn = *drawn, *self.draws(step)
        chance, generator = self.augmentation, self.generator
        # Without an augmentation the generator is left to the caller.
        if chance is None:
            return drawn
        lot = torch.rand((), generator=generator, dtype=torch.float32, device="cpu")
        if chance.roll:
            move = random_roll(chance.roll, generator)
            if dropping is not None:
                move = dropping.whole(move)
            drawn = *drawn, send(move, self.device)
        if lot >= chance.probability:
            return drawn
        maps = random_crops(self.parametrization.batch_size, chance.scale, generator)
        return *drawn, send(maps, self.device)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """One update; returns the terms before it."""
        self.optimizer.zero_grad()
        drawn, rest = inputs[: self.parametrization.drawn], inputs[self.parametrization.drawn :]
        left = len(self.dropping.inputs()) if self.dropping is not None else 0
        kept, rest = rest[:left], rest[left:]
        asked = self.draws.count if self.draws is not None else 0
        own, moves = rest[:asked], rest[asked:]
        with tensor_float32(self.precision == "tf32"):
            images, labels = self.parametrization.images(*drawn)
            self.seen = images.detach()
            if self.dropping is not None and kept:
                images, attention = self.dropping.held(images, *kept)
                self.dropping.look(self._moved(attention, moves), kept[0].shape[1])
            moved = self._moved(images, moves)
            losses = self.terms(moved, labels, *((images, own) if own else ()))
            values = torch.stack(list(losses.values()))
            total = values.sum()
            total.backward(inputs=list(self.trained()))
        self.names = tuple(losses)
        self.optimizer.step()
        self.plateau.step(total.detach())
        return values.detach()

    def _moved(self, images: Tensor, moves: Sequence[Tensor]) -> Tensor:
        """Images (B, C, H, W) as a step sees them: moved, and cropped in some."""
        rolls = bool(self.augmentation and self.augmentation.roll)
        for n, move in enumerate(moves):
            images = roll(images, move) if rolls and n == 0 else crop(images, move)
        return images

    def _drop(self, dropping: Dropping, step: int) -> None:
        """Drop patches; nothing moves their pixels any more, and the rate waits anew."""
        with tensor_float32(self.precision == "tf32"):
            left = dropping.drop(*self.parametrization.images(), step)
        for moments in self.optimizer.state.values():
            moments["exp_avg"].mul_(left)
        self.plateau.forget()

    def trained(self) -> Sequence[Tensor]:
        """The parameters of the images."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def state(self) -> dict[str, Tensor]:
        """Everything that decides the next iterations."""
        return {
            **named("images", self.parametrization.state()),
            "generator": self.generator.get_state(),
            **optimizer_tensors(self.optimizer),
            **self.plateau.state_dict(),
            **named("sparse", self.dropping.state() if self.dropping is not None else {}),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back a state."""
        self.parametrization.restore(part_of(tensors, "images"))
        self.generator.set_state(tensors["generator"])
        if self.dropping is not None:
            self.dropping.restore(part_of(tensors, "sparse"), self.device)
        restore_optimizer(self.optimizer, tensors)
        self.plateau.load_state_dict(tensors)
        for group in self.optimizer.param_groups:
            rate = self.plateau.rate
            group["lr"] = torch.zeros_like(rate) if "decaying" in group else rate


def image_loop(
    optimization: ImageOptimization,
    advice: Advice = SYNTHESIS,
    *,
    record: bool = True,
    checkpoint: CheckpointFile | None = None,
    fingerprint: str = "",
    keeps_end: bool = False,
) -> Loop:
    """The optimization up to its schedule's last step, with the advice of the stage it is of."""
    return Loop(
        optimization,
        optimization.schedule.steps,
        advice,
        optimization.device,
        every=LOOK_EVERY,
        record=record,
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        keeps_end=keeps_end,
    )
