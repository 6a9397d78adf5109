"""Switches and constants of the published fine-tuning step."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class LossConstants:
    """Weights and constants of the published objective.

    ``total = clean + perturbed_weight * perturbed + cam_weight * cam`` where ``clean`` and
    ``perturbed`` are each ``kl + ce_weight * ce + alignment_weight * feature_alignment``.
    """

    ce_weight: float = 5.0
    cam_weight: float = 200.0
    alignment_weight: float = 1000.0
    perturbed_weight: float = 1.0
    temperature: float = 20.0
    alpha: float = 20.0
    difficulty_threshold: float = 0.5
    epsilon: float = 0.01
    """Size of the sign perturbation, in normalised image space."""
    cutoff: float | None = 80.0
    """D0 of the Gaussian low-pass; None leaves the images unfiltered."""


@dataclass(frozen=True)
class PublishedStepConfig:
    """What one step does; the defaults are the published CIFAR behaviour.

    The first group changes the result of the step. Every switch of the second group costs time or
    memory and leaves the gradients as they are, up to float rounding.
    """

    losses: LossConstants = LossConstants()
    learning_rate: float = 1e-5
    momentum: float = 0.9
    weight_decay: float = 1e-4
    augment: bool = True
    """Random crop, resize and flip of each image; off makes the step a function of its images."""
    direction_through_teacher: bool = True
    """The perturbation's direction includes the path from the images through the teacher."""
    drop_perturbed_alignment: bool = True
    """The perturbed pass has no feature alignment: published for CIFAR, not for ImageNet."""
    channels_last: bool = False
    """Images reach both networks in channels_last; put the networks themselves into it too."""

    teacher_parameters_require_grad: bool = True
    """Gradients of the teacher's parameters are computed and accumulated, then never used."""
    backpropagate_teacher: bool = True
    """The final backward also runs through the teacher."""
    separate_cam_pass: bool = True
    """Each model's map takes its own forward and a full backward of its best class score."""
    augment_one_by_one: bool = True
    """The crops and flips run image by image in Python instead of as one sampling of the batch."""
    requantize_weights: bool = True
    """Each forward finds the weight ranges and fake-quantizes the weights anew."""
    full_complex_fft: bool = True
    """The low-pass transforms to a shifted full complex spectrum instead of a real half."""
    rebuild_mask: bool = True
    """The low-pass mask is computed again at each step."""
    filter_on_host: bool = True
    """Images are filtered on the CPU before they move to the device."""
    rebuild_cam: bool = True
    """The student's CAM object, with its two hooks, is created at each step."""
    leak_hooks: bool = True
    """Hooks of earlier CAM objects are never removed, so a step costs more than the one before."""
    standing_hooks: int = 0
    """Leaked hook pairs present from the start: the cost of step n without running n steps."""
    check_hooks: bool = True
    """Every hook firing looks for NaN and waits for the answer."""
    zero_image_pass: bool = True
    """Creating the CAM object runs the student, with its graph, on one all-zero image."""
    check_parameters: bool = True
    """Each CAM call looks for NaN and for infinity in every parameter, one wait per tensor."""
    check_intermediates: bool = True
    """Each CAM call looks for NaN in every intermediate tensor, one wait per tensor."""
    bump_zeros: bool = True
    """While any CAM gradient is exactly zero, 1e-10 is added to all of them."""
    duplicate_mse: bool = True
    """The distance between the two maps is computed twice."""
    host_logging: bool = True
    """A dozen scalars are read back to the host at each step."""

    @classmethod
    def costs(cls) -> tuple[str, ...]:
        """Names of the second group's switches."""
        names = [field.name for field in fields(cls)]
        costs = names[names.index("teacher_parameters_require_grad") :]
        return tuple(name for name in costs if name != "standing_hooks")

    @classmethod
    def lean(cls, **changes: Any) -> PublishedStepConfig:
        """The same mathematics without any of the second group's costs (10F instead of 22F)."""
        off: dict[str, Any] = dict.fromkeys(cls.costs(), False)
        return replace(cls(**off), **changes)
