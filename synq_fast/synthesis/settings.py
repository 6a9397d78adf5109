"""What recipes say of synthesis."""

from __future__ import annotations

from dataclasses import dataclass

from synq_fast.fields import (
    area,
    batch,
    choice,
    count,
    factor,
    flag,
    items,
    number,
    parts,
    rate,
    section,
)
from synq_fast.synthesis.losses import (
    GENERATOR_LOSSES,
    IMAGE_LOSSES,
    Classes,
    ImageLoss,
    Statistics,
)


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
class Latent:
    """Each batch of images from latents and a network of its own, both optimized (Genie)."""

    size: int = number(256, "of an image's latent", 1, 2**16)
    learning_rate: float = rate(0.01, "of the network at the start")
    decay: float = number(0.95, "what multiplies that rate again and again", 0.01, 1)
    decay_every: int = count(100, "how often", unit="steps")


@dataclass(frozen=True)
class Sparse:
    """Patches of a vision transformer's images that are dropped on the way (SMI, ICML 2024)."""

    share: float = number(
        0.0,
        "part of the patches left in each image, those attended least, that the teacher no longer "
        "sees from a milestone on; their pixels stay as they are then; 0: all stay",
        0,
        0.9,
    )
    milestones: tuple[float, ...] = items(
        (0.25, 0.35, 0.45),
        "where patches are dropped",
        low=0,
        high=1,
        unit="of the steps",
    )


@dataclass(frozen=True)
class Regions:
    """Regions of a vision transformer's images that have classes of their own (SARDFQ, MSR)."""

    most: int = number(
        0,
        "in each step, enlarge from one to so many regions of each image, whole patches that do "
        "not overlap, to images of another class each, which the losses classes and soft_classes "
        "look at too; 0: none",
        0,
        4,
        "regions",
    )
    share: float = number(1.0, "part of the steps that look at regions", 0, 1)


@dataclass(frozen=True)
class Refresh:
    """Images that are made again against the quantized network, in turn with its training."""

    every: int = number(
        0,
        "how often: before the first step of fine-tuning after so many, and so on; only then do "
        "losses count that read the quantized network; 0: never",
        0,
        10**8,
        "steps",
    )
    steps: int = count(100, "iterations of each batch of images then")
    restart: bool = flag(
        True, "begin with noise, other classes and places; else with the images as they are"
    )
    ranges: bool = flag(False, "find the activation ranges again on the new images")


@dataclass(frozen=True)
class Synthesis:
    """Images by optimizing them against the teacher."""

    images: int = count(1024, "how many are made", unit="images")
    batch_size: int = batch(256, "optimized together, and kept in one shard of the bank", 2)
    steps: int = count(1000, "iterations of each batch")
    parametrization: str = choice(
        "pixels",
        "what is optimized: the pixels, Fourier coefficients whose amplitudes fall like those of "
        "natural images, or latents and the network that draws images from them",
        "pixels",
        "spectrum",
        "latent",
    )
    learning_rate: float = rate(0.5, "of the pixels, coefficients or latents at the start")
    betas: tuple[float, float] = items(
        (0.9, 0.999), "Adam's memory of gradients and of their squares", low=0, high=0.99999
    )
    patience: int = count(50, "steps without progress before the rate falls to a tenth", 0, "steps")
    min_learning_rate: float = number(1e-4, "the least that the rate falls to", 0, 1e3, "per step")
    augment_probability: float = number(
        0.0, "share of the steps that see every image randomly cropped and mirrored", 0, 1
    )
    augment_scale: tuple[float, float] = area(0.4, 1.0, "part of the image that such a crop keeps")
    augment_roll: int = number(
        0,
        "in each step, move all images by up to so many pixels around their edges, and mirror half "
        "of the time (PSAQ-ViT); 0: not",
        0,
        2**12,
        "pixels",
    )
    clip: bool = flag(False, "keep pixels within what the teacher's normalisation makes of 0 to 1")
    swing: bool = flag(
        False, "in each step, shift what every strided convolution reads by up to a pixel (Genie)"
    )
    precision: str = choice("float32", "arithmetic of the teacher on a GPU", "float32", "tf32")
    cuda_graph: bool = flag(True, "on a GPU, record an iteration once and replay it")
    centers: Centers = section(Centers, "one image per class, whose statistics are matched too")
    latent: Latent = section(Latent, "latents and their network")
    sparse: Sparse = section(Sparse, "patches that are dropped, so that steps cost less")
    regions: Regions = section(Regions, "regions of an image that are images of another class")
    refresh: Refresh = section(Refresh, "images made again while the model is trained")
    losses: tuple[ImageLoss, ...] = parts(
        IMAGE_LOSSES,
        "what the images minimize; a recipe that names none takes statistics and classes",
        (Statistics(), Classes()),
    )


@dataclass(frozen=True)
class Generator:
    """Images from a class-conditional generator that is trained as they are used (GDFQ)."""

    steps: int = count(800, "steps before calibration", unit="steps")
    batch_size: int = batch(64, "images in each of its steps before calibration")
    latent: int = number(100, "size of the noise that an image is drawn from", 1, 2**16)
    condition: str = choice(
        "embedding",
        "how the class enters: its embedding times the noise, or a factor and a summand of its own "
        "in each norm (GDFQ for ImageNet)",
        "embedding",
        "norms",
    )
    learning_rate: float = rate(1e-3, "of Adam")
    cuda_graph: bool = flag(True, "on a GPU, record a step once and replay it")
    losses: tuple[ImageLoss, ...] = parts(
        GENERATOR_LOSSES,
        "what the images minimize; those that read the quantized network count from fine-tuning on",
        (Statistics(weight=0.1), Classes(weight=1.0, gamma=0.0)),
    )
