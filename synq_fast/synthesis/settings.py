"""What recipes say of synthesis."""

from __future__ import annotations

from dataclasses import dataclass

from synq_fast.fields import area, batch, choice, count, factor, flag, number, rate, section


@dataclass(frozen=True)
class Centers:
    """Calibration centres: one image per class whose statistics deep layers also match."""

    weight: float = factor(
        0.0, "factor on the deep layers' distance from the centres' statistics; 0 makes no centres"
    )
    steps: int = count(1500, "iterations of each batch of centres")
    learning_rate: float = rate(0.5, "of the pixels at the start")
    min_learning_rate: float = number(0.05, "the least that the rate falls to", 0, 1e3, "per step")
    class_weight: float = factor(5.0, "factor on the cross entropy")
    shallow_weight: float = factor(
        0.2, "factor on the BatchNorm loss of layers before TexQ's depth switch"
    )
    deep_weight: float = factor(1.1, "the same after the switch")


@dataclass(frozen=True)
class Synthesis:
    """Images by optimizing pixels against the teacher."""

    images: int = count(1024, "how many are made", unit="images")
    batch_size: int = batch(256, "optimized together, and kept in one shard of the bank", 2)
    steps: int = count(1000, "iterations of each batch")
    learning_rate: float = rate(0.5, "of the pixels at the start")
    patience: int = count(50, "steps without progress before the rate falls to a tenth", 0, "steps")
    min_learning_rate: float = number(1e-4, "the least that the rate falls to", 0, 1e3, "per step")
    statistics_weight: float = factor(1.0, "factor on the distance from the BatchNorm statistics")
    class_weight: float = factor(0.1, "factor on the focal class loss")
    focal_gamma: float = number(
        0.5, "exponent of the class loss: higher looks more at hard images", 0, 100
    )
    augment_probability: float = number(
        0.0, "share of the steps that see every image randomly cropped and mirrored", 0, 1
    )
    augment_scale: tuple[float, float] = area(0.4, 1.0, "part of the image that such a crop keeps")
    precision: str = choice("float32", "arithmetic of the teacher on a GPU", "float32", "tf32")
    cuda_graph: bool = flag(True, "on a GPU, record an iteration once and replay it")
    centers: Centers = section(Centers, "one image per class, whose statistics are matched too")


@dataclass(frozen=True)
class Generator:
    """Images from a class-conditional generator that is trained as they are used (GDFQ)."""

    steps: int = count(800, "steps before calibration", unit="steps")
    batch_size: int = batch(64, "images in each of its steps before calibration")
    latent: int = number(100, "size of the noise that an image is drawn from", 1, 2**16)
    learning_rate: float = rate(1e-3, "of Adam")
    class_weight: float = factor(1.0, "factor on the cross entropy of the teacher's logits")
    statistics_weight: float = factor(0.1, "factor on the distance from the BatchNorm statistics")
    cuda_graph: bool = flag(True, "on a GPU, record a step once and replay it")
