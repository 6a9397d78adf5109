"""What recipes say of reconstruction."""

from __future__ import annotations

from dataclasses import dataclass

from synq_fast.fields import area, batch, choice, count, factor, flag, items, number, rate


@dataclass(frozen=True)
class Blocks:
    """Training block by block against the float network's values (BRECQ, QDrop, Genie-M)."""

    images: int = count(512, "images whose values are kept, in the filter and crops of fine-tuning")
    crop_scale: tuple[float, float] = area(
        1.0, 1.0, "part of each image that a random crop keeps; [1, 1] only mirrors"
    )
    steps: int = count(800, "of each block; 0 leaves all as calibration found it", 0)
    batch_size: int = batch(32, "images in each step, of all processes together")
    rounding: str = choice(
        "soft",
        "how weights find their codes: a soft choice between the two nearest that hardens "
        "(AdaRound, Genie-M), or trained straight through the rounding (LSQ)",
        "soft",
        "straight",
    )
    rounding_learning_rate: float = rate(1e-3, "of the soft choices")
    weight_learning_rate: float = rate(2e-5, 'of the weights with rounding = "straight"')
    weight_range_learning_rate: float = rate(1e-3, "of the weights' ranges, relative to them")
    range_learning_rate: float = rate(1e-3, "of the activation ranges, relative to them")
    rounding_weight: float = factor(
        1.0, "factor on the sum over the weights of how undecided the soft choices are"
    )
    rounding_start: float = number(0.2, "share of the steps before that counts", 0, 1)
    rounding_exponents: tuple[float, float] = items(
        (20.0, 2.0),
        "its exponent then and at the last step: high ones spare undecided choices",
        low=1,
        high=100,
    )
    keep: float = number(
        0.5, "share of the activations that is quantized in a step, at random (QDrop)", 0.01, 1
    )
    mix: float = number(
        0.5, "share of a block's input that comes from the quantized network, at random", 0, 1
    )
    global_weight: float = factor(
        0.0, "factor on the distance of the last block's input, through the float blocks between"
    )
    curvature: bool = flag(
        False,
        "weigh each element of a block's value by the curvature of the logits' divergence in it, "
        "estimated once before the block is trained (LS-ViT's diagonal)",
    )
    cuda_graph: bool = flag(True, "on a GPU, record a step once for each block and replay it")
    memory: str = choice(
        "auto",
        "where the values are kept: auto takes files where they would take more than half of the "
        "free memory",
        "auto",
        "memory",
        "files",
    )
