"""What recipes say of quantizers."""

from __future__ import annotations

from dataclasses import dataclass

from synq_fast.fields import batch, choice, count, flag, items, number


@dataclass(frozen=True)
class Quantization:
    """Quantizers, their places, their widths and their ranges."""

    placement: str = choice(
        "auto",
        "where activations are quantized: after every ReLU (SynQ's), all that layers read, that "
        "and what attention multiplies (vit), or what every layer, norm and residual sum of a "
        "transformer gives (vit_outputs, PSAQ-ViT's), or all that an integer runtime keeps "
        "(integer); auto takes vit where there is attention, and after_relu for networks whose "
        "only activation function is ReLU",
        "auto",
        "after_relu",
        "all_inputs",
        "vit",
        "vit_outputs",
        "integer",
    )
    range: str = choice(
        "mse",
        "how an activation range follows from the batches: from its extremes, their moving "
        "average, the error of the values, or (output) of what linear layers and attention make of "
        "them",
        "ema",
        "minmax",
        "mse",
        "output",
    )
    shrink: float = number(1.0, "factor on both ends of every activation range", 1e-3, 1)
    learn_ranges: bool = flag(False, "train the activation ranges, starting from the observed ones")
    ste: str = choice(
        "identity",
        "gradient outside an activation range: passed, or zeroed",
        "identity",
        "clip",
    )
    weight_range: str = choice(
        "minmax",
        "range of each output channel: its extremes, the one with the least error, or one that is "
        "trained from there on",
        "minmax",
        "mse",
        "learned",
    )
    weight_scheme: str = choice(
        "auto",
        "grids of weights: with a zero point for each channel, or symmetric about zero, which "
        "8-bit weights need in integer runtimes; auto: symmetric at 8 bits under placement integer",
        "auto",
        "asymmetric",
        "symmetric",
    )
    weight_rounding: str = choice(
        "nearest",
        "codes of weights before any training: the nearest, or (balanced) those whose errors add "
        "up to nothing over each kernel and each output channel (SQuant)",
        "nearest",
        "balanced",
    )
    symmetric_activations: bool = flag(
        False,
        "make 8-bit activation ranges symmetric about zero, as TensorRT needs them: a bit less "
        "precise after ReLU",
    )
    end_bits: int = number(
        0,
        "width of the first layer, the last one and its input; 0: that of the rest",
        2,
        8,
        "bits",
        or_zero=True,
    )
    layer_bits: tuple[str, ...] = items(
        (), 'widths of single layers and their inputs, such as "fc=w8a8"'
    )
    rotate: str = choice(
        "never",
        "rotate the residual stream of a vision transformer, so that no channel stands out: the "
        "same function, at no cost when it runs (GLF-Q); auto: where the network has the form",
        "never",
        "auto",
        "always",
    )
    equalize: str = choice(
        "never",
        "bring the channels that depthwise convolutions read to one range, by factors that the "
        "layers around them take up, at no cost when it runs (cross-layer equalization); auto: "
        "where the network has any",
        "never",
        "auto",
        "always",
    )
    fold_norms: str = choice(
        "never",
        "give the channels of LayerNorms that linear layers alone read ranges alike, exactly, by "
        "factors and summands that norms and layers take up (RepQ-ViT); auto: where that lowers "
        "the error of the layers on calibration images that are held out",
        "never",
        "auto",
        "always",
    )
    ridge: float = number(
        0.0,
        "correct the weights of linear layers for the rounding of what they read, by least squares "
        "with this share of the mean diagonal as ridge (ERQ); 0: not",
        1e-6,
        1e3,
        or_zero=True,
    )
    head_ranges: bool = flag(
        False,
        "with placement vit, queries, keys, values and probabilities have a range for each head: "
        "one head attends to single patches, another to all of them",
    )
    probabilities: str = choice(
        "uniform",
        "levels of attention's probabilities: equal steps, or powers of two, which hold small "
        "probabilities and have no form in integers; auto: powers of two up to 5 bits where they "
        "err less, but not under placement integer",
        "uniform",
        "log2",
        "auto",
    )
    after_gelu: str = choice(
        "uniform",
        "levels of what GELU, SiLU and hard-swish give, mostly small numbers and few large ones: "
        "equal steps, or floats of three exponent bits, which hold both and have no form in "
        "integers, from 3 bits on; auto: floats from 3 to 5 bits, but not under placement integer",
        "uniform",
        "minifloat",
        "auto",
    )
    calibration_batches: int = count(8, "what activation ranges are found on", unit="batches")
    calibration_batch_size: int = batch(64, "in each of them")
    leaf_modules: tuple[str, ...] = items(
        (), "qualified names or classes of submodules that stay whole and in floating point"
    )
