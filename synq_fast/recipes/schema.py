"""The parts of a recipe, each value with its meaning and its bounds (METHODS section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _number(default: float, low: float, high: float = float("inf")) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


def _choice(default: str, *options: str) -> Any:
    return field(default=default, metadata={"options": options})


@dataclass(frozen=True)
class Centers:
    """Calibration centres: one image per class whose statistics deep layers also match."""

    weight: float = _number(0.0, 0)
    """Factor on the deep-layer loss against the centres' statistics; 0 makes no centres."""
    steps: int = _number(1500, 1)
    learning_rate: float = _number(0.5, 0)
    min_learning_rate: float = _number(0.05, 0)
    class_weight: float = _number(5.0, 0)
    shallow_weight: float = _number(0.2, 0)
    """BatchNorm loss weight of layers before TexQ's depth switch."""
    deep_weight: float = _number(1.1, 0)


@dataclass(frozen=True)
class Synthesis:
    """Images by optimizing pixels against the teacher."""

    images: int = _number(1024, 1)
    batch_size: int = _number(256, 2)
    """Images optimized together, and images per shard of the bank."""
    steps: int = _number(1000, 1)
    learning_rate: float = _number(0.5, 0)
    patience: int = _number(50, 0)
    """Steps without progress before the learning rate falls to a tenth."""
    min_learning_rate: float = _number(1e-4, 0)
    statistics_weight: float = _number(1.0, 0)
    class_weight: float = _number(0.1, 0)
    focal_gamma: float = _number(0.5, 0)
    augment_probability: float = _number(0.0, 0, 1)
    """Share of steps that see every image randomly cropped and mirrored."""
    augment_scale: tuple[float, float] = field(default=(0.4, 1.0), metadata={"low": 0, "high": 1})
    cuda_graph: bool = True
    """On a GPU, record an iteration once and replay it."""
    centers: Centers = field(default_factory=Centers)


@dataclass(frozen=True)
class Quantization:
    """Quantizers, their places and their ranges."""

    placement: str = _choice("auto", "auto", "after_relu", "all_inputs")
    """Where activations are quantized: after every ReLU (SynQ's), or all that layers read; "auto"
    takes the first for networks whose only activation function is ReLU."""
    range: str = _choice("mse", "ema", "minmax", "mse")
    shrink: float = _number(1.0, 1e-3, 1)
    """Factor on the ends of every observed activation range."""
    learn_ranges: bool = False
    """Train the activation ranges, starting from the observed ones."""
    ste: str = _choice("identity", "identity", "clip")
    calibration_batches: int = _number(8, 1)
    calibration_batch_size: int = _number(64, 1)
    leaf_modules: tuple[str, ...] = ()
    """Qualified names or classes of submodules that stay whole and in floating point."""


@dataclass(frozen=True)
class Filter:
    """Low-pass filter on the synthetic images."""

    kind: str = _choice("gaussian", "none", "gaussian", "butterworth", "ideal")
    cutoff: float = _number(8.0, 0)
    """Cut-off D0 in cycles per image."""
    order: int = _number(2, 1)
    """Order of the Butterworth filter; the other kinds have none."""


@dataclass(frozen=True)
class Distillation:
    """Losses on the logits."""

    alpha: float = _number(20.0, 0)
    """Factor on the KL divergence, beside the squared temperature."""
    temperature: float = _number(20.0, 1e-6)
    label_weight: float = _number(0.05, 0)
    """Factor on the cross entropy against the synthetic labels."""
    soft_labels_only_if_difficult: bool = True
    """Leave images of at least the threshold's difficulty to the KL term alone."""
    difficulty_threshold: float = _number(0.5, 0, 1)


@dataclass(frozen=True)
class Features:
    """Alignment of the residual bodies' channel energies (HAST)."""

    weight: float = _number(1000.0, 0)
    in_perturbed_pass: bool = True
    """The published code drops the term there on CIFAR."""


@dataclass(frozen=True)
class Perturbation:
    """A second pass on images moved by the sign of the loss gradient (HAST)."""

    weight: float = _number(1.0, 0)
    """Factor on the second pass's losses; 0 leaves the pass out."""
    epsilon: float = _number(0.01, 0)
    """Size of the move, in normalised pixel units."""
    through_teacher: bool = False
    """Let the sign follow the teacher's own dependence on the image, as the published code does."""


@dataclass(frozen=True)
class Cam:
    """Alignment of the class activation maps (SynQ)."""

    weight: float = _number(200.0, 0)
    target: str = _choice("argmax", "argmax", "label")
    """Whose map: each model's own strongest class, or the synthetic label's."""


@dataclass(frozen=True)
class Finetune:
    """Training of the quantized model."""

    steps: int = _number(2000, 0)
    batch_size: int = _number(64, 1)
    learning_rate: float = _number(1e-5, 0)
    range_learning_rate: float = _number(1e-5, 0)
    """Learning rate of the activation ranges, where they are learned."""
    momentum: float = _number(0.9, 0, 1)
    nesterov: bool = True
    weight_decay: float = _number(1e-4, 0)
    max_gradient_norm: float = _number(0.0, 0)
    """Gradients with a larger norm are scaled down to it; 0 never does."""
    schedule: str = _choice("cosine", "constant", "cosine", "step")
    milestones: tuple[float, ...] = ()
    """Shares of the steps after which ``schedule = "step"`` divides the rate by 10."""
    crop_scale: tuple[float, float] = field(default=(0.5, 1.0), metadata={"low": 0, "high": 1})
    """Share of the area kept by the random crops; (1, 1) only mirrors."""
    precision: str = _choice("float32", "float32", "tf32", "bf16")
    """Arithmetic of the two networks; quantizers and losses stay in float32."""
    bank: str = _choice("auto", "auto", "memory", "stream")
    """Where the images are: "stream" reads each batch from the shards, "auto" does where the images
    would take more than half of the free memory. The batches are the same."""
    cuda_graph: bool = True
    """On a GPU, record the step once and replay it."""
    compile: bool = False
    """Run both networks through ``torch.compile``."""
    checkpoint_seconds: float = _number(30.0, 0)
    """What a killed run may lose, in synthesis and calibration as well; more where saving would
    take over a twentieth of the time, and 0 saves at every step."""
    distillation: Distillation = field(default_factory=Distillation)
    features: Features = field(default_factory=Features)
    perturbation: Perturbation = field(default_factory=Perturbation)
    cam: Cam = field(default_factory=Cam)


@dataclass(frozen=True)
class Recipe:
    """A method: parts chosen and numbers set."""

    name: str
    summary: str = ""
    synthesis: Synthesis = field(default_factory=Synthesis)
    quantization: Quantization = field(default_factory=Quantization)
    filter: Filter = field(default_factory=Filter)
    finetune: Finetune = field(default_factory=Finetune)
