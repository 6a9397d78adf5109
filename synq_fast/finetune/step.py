"""One fine-tuning step: the fewest passes through both networks that give every gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx

from synq_fast.errors import RecipeError
from synq_fast.finetune.losses import Batch, Loss, View
from synq_fast.finetune.settings import Finetune
from synq_fast.graph.structure import Structure
from synq_fast.graph.taps import Tap, Tapped
from synq_fast.quant import energy_name, folded, fused, held_weights
from synq_fast.runtime.precision import autocast, tensor_float32


class Step:
    """Losses and gradients of one batch, for whichever losses a recipe names.

    The student runs clean and, where the recipe perturbs, on images moved by the sign of the
    gradient of those losses that need no gradient of their own (HAST). In units of one forward
    pass F, SynQ's step takes 9: the student clean and perturbed (2F), the input
    gradient between them (1F), one joint backward of everything (4F); the teacher twice (2F).
    Class activation maps add only the two heads. Weights are quantized once.
    """

    def __init__(
        self,
        teacher: fx.GraphModule,
        student: fx.GraphModule,
        structure: Structure,
        recipe: Finetune,
    ) -> None:
        """Tap both networks for what the recipe's losses read.

        Raises:
            ModelError: a loss reads what the model does not have.
        """
        self.recipe = recipe
        self.taps_of: dict[Loss, tuple[Tap, ...]] = {
            loss: loss.taps(structure) for loss in recipe.losses if loss.active
        }
        self.parameters = [p for p in student.parameters() if p.requires_grad]
        taps = [tap for taps in self.taps_of.values() for tap in taps]
        values = list(dict.fromkeys(tap for tap in taps if tap.kind != "map"))
        self._place = {tap: place for place, tap in enumerate(values)}
        maps = list(dict.fromkeys(tap.node for tap in taps if tap.kind == "map"))
        if len(maps) > 1:
            raise RecipeError(f"losses read maps at several nodes: {', '.join(maps)}")
        self._map = maps[0] if maps else None
        energies = [tap.node for tap in values if tap.kind == "energy"]
        keep = {*maps, *(tap.node for tap in values if tap.kind == "activation")}
        names = [energy_name(tap.node) if tap.kind == "energy" else tap.node for tap in values]
        self.student_module = fused(student, keep, energies)
        frozen = folded(teacher, {*keep, *energies}, energies)
        self.done = torch.zeros((), dtype=torch.float32, device=next(student.parameters()).device)
        """Share of the training that is done; whoever trains fills it, a recorded step reads it."""
        self.student = Tapped(self.student_module, names, self._map, compile=recipe.compile)
        self.teacher = Tapped(frozen, names, self._map, compile=recipe.compile)

    @property
    def losses(self) -> Sequence[Loss]:
        """Those that leave anything."""
        return tuple(self.taps_of)

    @property
    def per_image(self) -> bool:
        """Whether a batch may be split: every term is a mean over images."""
        return all(loss.per_image for loss in self.losses)

    @property
    def term_names(self) -> list[str]:
        """Names of the values that a step returns, in order."""
        clean = [name for loss in self.losses for name in loss.names]
        if not self.recipe.perturbation.weight:
            return clean
        return clean + [f"perturbed_{n}" for x in self.losses if x.perturbed for n in x.names]

    def __call__(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Add the gradient of the total loss to the student's parameters.

        Args:
            images: (B, C, H, W) normalised, augmented and filtered.
            labels: (B,) int64 synthetic labels.

        Returns:
            The weighted terms as detached 0-d tensors, by name; their sum is the loss.
        """
        tf32 = tensor_float32(self.recipe.precision == "tf32")
        with tf32, held_weights(self.student_module):
            terms = self.terms(images.detach(), labels)
            total = torch.stack(list(terms.values())).sum()
            total.backward(inputs=self.parameters)
        return {name: value.detach() for name, value in terms.items()}

    def terms(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The weighted terms (0-d) of detached images, before the joint backward."""
        perturbation = self.recipe.perturbation
        if perturbation.weight:
            images = images.requires_grad_()
        student = self._run(self.student, images)
        through = images if perturbation.through_teacher else images.detach()
        teacher = self._run(self.teacher, through)
        batch = Batch(labels, (images.shape[2], images.shape[3]), done=self.done)
        terms: dict[str, Tensor] = {}
        direction: list[Tensor] = []
        for loss, ours, theirs in self._views(student, teacher):
            values = loss(ours, theirs, batch)
            terms.update(zip(loss.names, values, strict=True))
            if not any(tap.kind == "map" for tap in self.taps_of[loss]):
                direction.extend(values)
        if perturbation.weight:
            slope = torch.autograd.grad(torch.stack(direction).sum(), images, retain_graph=True)[0]
            moved = images.detach() + perturbation.epsilon * slope.sign()
            terms.update(self._perturbed_terms(moved, labels, teacher[0]))
        return terms

    def _perturbed_terms(
        self, moved: Tensor, labels: Tensor, clean_logits: Tensor
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher = self._run(self.teacher, moved)
        student = self._run(self.student, moved)
        size, judge = (moved.shape[2], moved.shape[3]), clean_logits.detach()
        batch = Batch(labels, size, judge, self.done)
        return {
            f"perturbed_{name}": self.recipe.perturbation.weight * value
            for loss, ours, theirs in self._views(student, teacher)
            if loss.perturbed
            for name, value in zip(loss.names, loss(ours, theirs, batch), strict=True)
        }

    def _run(self, network: Tapped, images: Tensor) -> tuple[Tensor, dict[Tap, Tensor]]:
        with autocast(images.device, self.recipe.precision):
            seen = network(images)
        values = {tap: seen.features[place] for tap, place in self._place.items()}
        if self._map is not None:
            assert seen.cam_activation is not None
            values[Tap(self._map, "map")] = seen.cam_activation
        return seen.logits, values

    def _views(
        self, student: tuple[Tensor, dict[Tap, Tensor]], teacher: tuple[Tensor, dict[Tap, Tensor]]
    ) -> Iterator[tuple[Loss, View, View]]:
        """Each loss with what it sees of both networks."""
        for loss, taps in self.taps_of.items():
            ours, theirs = (
                View(logits, tuple(values[tap] for tap in taps))
                for logits, values in (student, teacher)
            )
            yield loss, ours, theirs
