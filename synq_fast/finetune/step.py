"""One fine-tuning step: the fewest passes through both networks that give every gradient."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from synq_fast.errors import ModelError
from synq_fast.finetune.terms import Batch, any_needs, build_terms
from synq_fast.quant import Tapped, TapPoints, View, energy_name, folded, fused, held_weights
from synq_fast.recipes.schema import Finetune
from synq_fast.runtime.precision import autocast, tensor_float32


class SynqStep:
    """Losses and gradients of SynQ's step (METHODS 1.4, eq. 6 of the paper with HAST's terms).

    In units of one forward pass F: the student runs clean and perturbed (2F), gives the input
    gradient between them (1F) and one joint backward of everything (4F); the teacher runs twice
    (2F). Class activation maps add only the two heads. Weights are quantized once.
    """

    def __init__(
        self,
        teacher: fx.GraphModule,
        student: fx.GraphModule,
        points: TapPoints,
        recipe: Finetune,
    ) -> None:
        """Tap both networks for what the recipe's terms read.

        Raises:
            ModelError: a term reads what the model does not have.
        """
        self.recipe = recipe
        self.terms = build_terms(recipe)
        self.parameters = [p for p in student.parameters() if p.requires_grad]
        cam = points.last_spatial_convolution if any_needs(self.terms, "needs_cam") else None
        if cam is None and any_needs(self.terms, "needs_cam"):
            raise ModelError(
                "the recipe compares class activation maps, but this model has no convolution "
                "with more than one output pixel; set finetune.cam.weight = 0"
            )
        features = points.residual_bodies if any_needs(self.terms, "needs_features") else ()
        keep = {cam} if cam else set()
        energies = [energy_name(name) for name in features]
        self.student_module = fused(student, keep, features)
        frozen = folded(teacher, {*keep, *features}, features)
        self.student = Tapped(self.student_module, energies, cam, compile=recipe.compile)
        self.teacher = Tapped(frozen, energies, cam, compile=recipe.compile)

    @property
    def term_names(self) -> list[str]:
        """Names of the values that a step returns, in order."""
        clean = [name for term in self.terms for name in term.names]
        if not self.recipe.perturbation.weight:
            return clean
        return clean + [f"perturbed_{n}" for t in self.terms if t.perturbed for n in t.names]

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
            losses = self.losses(images.detach(), labels)
            total = torch.stack(list(losses.values())).sum()
            total.backward(inputs=self.parameters)
        return {name: loss.detach() for name, loss in losses.items()}

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The weighted terms (0-d) of detached images, before the joint backward."""
        perturbation = self.recipe.perturbation
        if perturbation.weight:
            images = images.requires_grad_()
        student = self._run(self.student, images)
        through = images if perturbation.through_teacher else images.detach()
        teacher = self._run(self.teacher, through)
        batch = Batch(labels, (images.shape[2], images.shape[3]))
        losses: dict[str, Tensor] = {}
        direction: list[Tensor] = []
        for term in self.terms:
            values = term(student, teacher, batch)
            losses.update(values)
            if not term.needs_cam:
                direction.extend(values.values())
        if perturbation.weight:
            slope = torch.autograd.grad(torch.stack(direction).sum(), images, retain_graph=True)[0]
            moved = images.detach() + perturbation.epsilon * slope.sign()
            losses.update(self._perturbed_losses(moved, labels, teacher))
        return losses

    def _perturbed_losses(self, moved: Tensor, labels: Tensor, clean: View) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher = self._run(self.teacher, moved)
        student = self._run(self.student, moved)
        batch = Batch(labels, (moved.shape[2], moved.shape[3]), judge=clean.logits.detach())
        return {
            f"perturbed_{name}": self.recipe.perturbation.weight * loss
            for term in self.terms
            if term.perturbed
            for name, loss in term(student, teacher, batch).items()
        }

    def _run(self, network: Tapped, images: Tensor) -> View:
        with autocast(images.device, self.recipe.precision):
            return network(images)
