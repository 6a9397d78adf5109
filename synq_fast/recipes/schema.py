"""The parts of a recipe, each value with its meaning and its bounds (METHODS section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Wider than anything sensible, and narrow enough for float32, for memory and for an end in sight.
_LARGEST_COUNT = 10**8
_LARGEST_BATCH = 2**16
_LARGEST_FACTOR = 1e9
_SMALLEST_FACTOR = 1e-9


def _number(default: float, low: float, high: float) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


def _count(default: int, low: int = 1) -> Any:
    return _number(default, low, _LARGEST_COUNT)


def _batch(default: int, low: int = 1) -> Any:
    return _number(default, low, _LARGEST_BATCH)


def _factor(default: float) -> Any:
    """A factor, or the 0 that leaves its part out."""
    metadata = {"low": _SMALLEST_FACTOR, "high": _LARGEST_FACTOR, "or_zero": True}
    return field(default=default, metadata=metadata)


def _rate(default: float) -> Any:
    return _number(default, 1e-12, 1e3)


def _area(low: float, high: float) -> Any:
    """The smallest and the largest share of an image's area."""
    return field(default=(low, high), metadata={"low": 1e-3, "high": 1, "ascending": True})


def _choice(default: str, *options: str) -> Any:
    return field(default=default, metadata={"options": options})


@dataclass(frozen=True)
class Centers:
    """Calibration centres: one image per class whose statistics deep layers also match."""

    weight: float = _factor(0.0)
    """Factor on the deep-layer loss against the centres' statistics; 0 makes no centres."""
    steps: int = _count(1500)
    learning_rate: float = _rate(0.5)
    min_learning_rate: float = _number(0.05, 0, 1e3)
    class_weight: float = _factor(5.0)
    shallow_weight: float = _factor(0.2)
    """BatchNorm loss weight of layers before TexQ's depth switch."""
    deep_weight: float = _factor(1.1)


@dataclass(frozen=True)
class Synthesis:
    """Images by optimizing pixels against the teacher."""

    images: int = _count(1024)
    batch_size: int = _batch(256, 2)
    """Images optimized together, and images per shard of the bank."""
    steps: int = _count(1000)
    learning_rate: float = _rate(0.5)
    patience: int = _count(50, 0)
    """Steps without progress before the learning rate falls to a tenth."""
    min_learning_rate: float = _number(1e-4, 0, 1e3)
    statistics_weight: float = _factor(1.0)
    class_weight: float = _factor(0.1)
    focal_gamma: float = _number(0.5, 0, 100)
    augment_probability: float = _number(0.0, 0, 1)
    """Share of steps that see every image randomly cropped and mirrored."""
    augment_scale: tuple[float, float] = _area(0.4, 1.0)
    precision: str = _choice("float32", "float32", "tf32")
    """Arithmetic of the teacher on a GPU."""
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
    calibration_batches: int = _count(8)
    calibration_batch_size: int = _batch(64)
    leaf_modules: tuple[str, ...] = ()
    """Qualified names or classes of submodules that stay whole and in floating point."""


@dataclass(frozen=True)
class Filter:
    """Low-pass filter on the synthetic images."""

    kind: str = _choice("gaussian", "none", "gaussian", "butterworth", "ideal")
    cutoff: float = _number(8.0, 1, 1e6)
    """Cut-off D0 in cycles per image; below one, nothing but flat images would pass."""
    order: int = _number(2, 1, 100)
    """Order of the Butterworth filter; the other kinds have none."""


@dataclass(frozen=True)
class Distillation:
    """Losses on the logits."""

    alpha: float = _factor(20.0)
    """Factor on the KL divergence, beside the squared temperature."""
    temperature: float = _number(20.0, 0.01, 1000)
    label_weight: float = _factor(0.05)
    """Factor on the cross entropy against the synthetic labels."""
    soft_labels_only_if_difficult: bool = True
    """Leave images of at least the threshold's difficulty to the KL term alone."""
    difficulty_threshold: float = _number(0.5, 0, 1)


@dataclass(frozen=True)
class Features:
    """Alignment of the residual bodies' channel energies (HAST)."""

    weight: float = _factor(1000.0)
    in_perturbed_pass: bool = True
    """The published code drops the term there on CIFAR."""


@dataclass(frozen=True)
class Perturbation:
    """A second pass on images moved by the sign of the loss gradient (HAST)."""

    weight: float = _factor(1.0)
    """Factor on the second pass's losses; 0 leaves the pass out."""
    epsilon: float = _number(0.01, 1e-6, 100)
    """Size of the move, in normalised pixel units."""
    through_teacher: bool = False
    """Let the sign follow the teacher's own dependence on the image, as the published code does."""


@dataclass(frozen=True)
class Cam:
    """Alignment of the class activation maps (SynQ)."""

    weight: float = _factor(200.0)
    target: str = _choice("argmax", "argmax", "label")
    """Whose map: each model's own strongest class, or the synthetic label's."""


@dataclass(frozen=True)
class Finetune:
    """Training of the quantized model."""

    steps: int = _count(2000, 0)
    """0 leaves the model as calibration found it."""
    batch_size: int = _batch(64)
    learning_rate: float = _rate(1e-5)
    range_learning_rate: float = _rate(1e-5)
    """Learning rate of the activation ranges, where they are learned."""
    momentum: float = _number(0.9, 0, 0.9999)
    nesterov: bool = True
    weight_decay: float = _number(1e-4, 0, 1e3)
    max_gradient_norm: float = _factor(0.0)
    """Gradients with a larger norm are scaled down to it; 0 never does."""
    schedule: str = _choice("cosine", "constant", "cosine", "step")
    milestones: tuple[float, ...] = field(default=(), metadata={"low": 0, "high": 1})
    """Shares of the steps after which ``schedule = "step"`` divides the rate by 10."""
    crop_scale: tuple[float, float] = _area(0.5, 1.0)
    """Share of the area kept by the random crops; (1, 1) only mirrors."""
    precision: str = _choice("float32", "float32", "tf32", "bf16")
    """Arithmetic of the two networks, in calibration as well; quantizers, losses and the low-pass
    filter stay in float32. PyTorch's own switches for TF32 have no effect in a run."""
    bank: str = _choice("auto", "auto", "memory", "stream")
    """Where the images are: "stream" reads each batch from the shards, "auto" does where the images
    would take more than half of the free memory. The batches are the same."""
    cuda_graph: bool = True
    """On a GPU, record the step once and replay it."""
    compile: bool = False
    """Run both networks through ``torch.compile``."""
    checkpoint_seconds: float = _number(30.0, 0, 1e9)
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
