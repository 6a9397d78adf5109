"""The published SynQ fine-tuning step (SynQ, ICLR 2025), rebuilt from its description.

The default configuration performs the published step's 22 batch-forward equivalents: three
forwards of each model, a full backward of each model's class score, and a backward of the
objective that also runs through the teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from .published_augmentation import augment_each, augment_together
from .published_cam import PublishedGradCam, class_activation_map
from .published_config import LossConstants, PublishedStepConfig
from .published_losses import (
    difficulty,
    distillation,
    feature_alignment,
    low_pass_full,
    low_pass_half,
    low_pass_mask,
    masked_cross_entropy,
)
from .published_quantizer import (
    build_published_student,
    held_weights,
    set_ranges,
    trace_out_of_place,
    tracking_ranges,
)
from .published_taps import OutputTaps, last_convolution, residual_bodies

__all__ = [
    "LossConstants",
    "PublishedStep",
    "PublishedStepConfig",
    "build_published_student",
]


@dataclass
class _Pass:
    logits: Tensor
    features: list[Tensor]
    activations: Tensor

    def detached(self) -> _Pass:
        features = [tensor.detach() for tensor in self.features]
        return _Pass(self.logits.detach(), features, self.activations.detach())


class _Network:
    """A model with its taps and its CAM layer."""

    def __init__(self, model: fx.GraphModule, features: Sequence[str], cam_layer: str) -> None:
        self.model = model
        self.cam_layer = model.get_submodule(cam_layer)
        self._features = OutputTaps(model, features)
        self._activations = OutputTaps(model, [cam_layer], start_graph=True)

    def __call__(self, images: Tensor) -> _Pass:
        logits = self.model(images)
        return _Pass(logits, self._features.read(), self._activations.read()[0])


class PublishedStep:
    """One optimizer step after another on a quantized student, the published way."""

    def __init__(
        self,
        teacher: nn.Module,
        student: fx.GraphModule,
        config: PublishedStepConfig | None = None,
        *,
        feature_names: Sequence[str] | None = None,
        cam_layer: str | None = None,
    ) -> None:
        """Prepare the step.

        Args:
            teacher: the float model; it is copied and left alone.
            student: from ``build_published_student``, with its ranges set; trained in place.
            config: switches and constants.
            feature_names: modules for the feature alignment, by default every residual body.
            cam_layer: the convolution for Grad-CAM, by default the last one.
        """
        self.config = config = config if config is not None else PublishedStepConfig()
        names = residual_bodies(student) if feature_names is None else feature_names
        cam_layer = cam_layer if cam_layer is not None else last_convolution(teacher)
        self.student = student
        self._student = _Network(student, names, cam_layer)
        copied = trace_out_of_place(copy.deepcopy(teacher).eval())
        copied.requires_grad_(config.teacher_parameters_require_grad)
        self._teacher = _Network(copied, names, cam_layer)
        self._parameters = dict(student.named_parameters())
        self._optimizer = torch.optim.SGD(
            self._parameters.values(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=True,
        )
        self._mask: Tensor | None = None
        self._cam: PublishedGradCam | None = None
        if config.separate_cam_pass:
            for _ in range(config.standing_hooks):
                PublishedGradCam(student, self._student.cam_layer, config)
            self._teacher_cam = PublishedGradCam(copied, self._teacher.cam_layer, config)
        self.last_record: dict[str, float] = {}

    def set_ranges(self, ranges: Mapping[str, tuple[float | Tensor, float | Tensor]]) -> None:
        """Freeze the student's activation ranges; names as in ``activation_quantizers``."""
        set_ranges(self.student, ranges)

    def observe_ranges(self, images: Tensor) -> None:
        """Freeze the student's activation ranges at the extremes of one batch."""
        with torch.no_grad(), tracking_ranges(self.student, beta=0.0):
            self.student(images)

    def gradients(self) -> dict[str, Tensor]:
        """Copies of the student's gradients after the last step, by parameter name."""
        return {
            name: parameter.grad.clone()
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        }

    def step(self, images: Tensor, labels: Tensor, *, update: bool = True) -> dict[str, Tensor]:
        """Run one step.

        Args:
            images: (B, C, H, W) in normalised space.
            labels: (B,) int64.
            update: apply the optimizer; off leaves the parameters and keeps the gradients.

        Returns:
            The detached terms ``kl, ce, alignment, perturbed, cam, total``, each a scalar.
        """
        with held_weights(self.student, hold=not self.config.requantize_weights):
            terms = self._backward(self._prepare(images), labels)
        if update:
            self._optimizer.step()
        return {name: term.detach() for name, term in terms.items()}

    def _prepare(self, images: Tensor) -> Tensor:
        config, cutoff = self.config, self.config.losses.cutoff
        device = next(self.student.parameters()).device
        if config.augment:
            augment = augment_each if config.augment_one_by_one else augment_together
            images = augment(images, scale=(0.5, 1.0))
        images = images.cpu() if config.filter_on_host else images.to(device)
        if cutoff is not None:
            if self._mask is None or config.rebuild_mask:
                height, width = images.shape[-2:]
                self._mask = low_pass_mask(height, width, cutoff, images)
            low_pass = low_pass_full if config.full_complex_fft else low_pass_half
            images = low_pass(images, self._mask)
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images.to(device).detach().requires_grad_(True)

    def _objective(
        self, student: _Pass, teacher: _Pass, labels: Tensor, easy: Tensor, *, aligned: bool
    ) -> dict[str, Tensor]:
        losses = self.config.losses
        kl = distillation(student.logits, teacher.logits, losses.temperature, losses.alpha)
        ce = masked_cross_entropy(student.logits, labels, easy)
        total = kl + losses.ce_weight * ce
        if not aligned:
            return {"kl": kl, "ce": ce, "total": total}
        alignment = losses.alignment_weight * feature_alignment(student.features, teacher.features)
        return {"kl": kl, "ce": ce, "alignment": alignment, "total": total + alignment}

    def _backward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        config, losses = self.config, self.config.losses
        student = self._student(images)
        if config.direction_through_teacher:
            teacher = self._teacher(images)
            target = teacher
        else:
            teacher = self._teacher(images.detach())
            target = teacher.detached()
        easy = difficulty(teacher.logits, labels) < losses.difficulty_threshold
        terms = self._objective(student, target, labels, easy, aligned=True)
        clean = terms["total"]

        (direction,) = torch.autograd.grad(clean, images, retain_graph=True)
        moved = (images + losses.epsilon * direction.sign()).detach()
        cam = self._cam_loss(images.detach(), teacher, student)
        with torch.no_grad():
            moved_teacher = self._teacher(moved)
        aligned = not config.drop_perturbed_alignment
        moved_student = self._student(moved)
        perturbed = self._objective(moved_student, moved_teacher, labels, easy, aligned=aligned)

        terms["perturbed"], terms["cam"] = perturbed["total"], cam
        terms["total"] = (
            clean + losses.perturbed_weight * perturbed["total"] + losses.cam_weight * cam
        )
        self._optimizer.zero_grad()
        if config.backpropagate_teacher:
            terms["total"].backward()
        else:
            terms["total"].backward(inputs=list(self._parameters.values()))
        if config.host_logging:
            self._log(terms, teacher.logits, student.logits, moved_student.logits, labels)
        return terms

    def _cam_loss(self, images: Tensor, teacher: _Pass, student: _Pass) -> Tensor:
        config = self.config
        if config.separate_cam_pass:
            target = self._teacher_cam(images)
            current = self._student_cam(images)(images)
        else:
            target, current = self._reused_map(images, teacher), self._reused_map(images, student)
        if not config.backpropagate_teacher:
            target = target.detach()
        if config.duplicate_mse:
            functional.mse_loss(current, target)
        return functional.mse_loss(current, target)

    def _student_cam(self, images: Tensor) -> PublishedGradCam:
        if self._cam is None or self.config.rebuild_cam:
            if self._cam is not None and not self.config.leak_hooks:
                self._cam.remove()
            zero_image = torch.zeros_like(images[:1]) if self.config.zero_image_pass else None
            self._cam = PublishedGradCam(
                self.student, self._student.cam_layer, self.config, zero_image
            )
        return self._cam

    def _reused_map(self, images: Tensor, clean: _Pass) -> Tensor:
        """The map from a pass that has already run, through the model's head alone."""
        score = clean.logits.max(dim=1).values.sum()
        (gradients,) = torch.autograd.grad(score, clean.activations, retain_graph=True)
        return class_activation_map(
            clean.activations,
            gradients,
            (images.shape[-2], images.shape[-1]),
            bump_zeros=self.config.bump_zeros,
            check=self.config.check_intermediates,
        )

    def _log(self, terms: dict[str, Tensor], *logits_then_labels: Tensor) -> None:
        *logits, labels = logits_then_labels
        record = {name: term.item() for name, term in terms.items()}
        for name, tensor in zip(("teacher", "student", "moved"), logits, strict=True):
            predicted = tensor.detach().argmax(dim=1).cpu()
            record[f"{name}_error"] = 1 - (predicted == labels.cpu()).float().mean().item()
        self.last_record = record
