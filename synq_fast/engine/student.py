"""The quantized structure of a recipe: what every run, report and saved model is built as."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, fx, nn

from synq_fast.errors import ModelError
from synq_fast.graph.equalization import equalized, equalized_readers
from synq_fast.graph.norm_folding import with_foldable_norms
from synq_fast.graph.rotation import rotated
from synq_fast.quant import (
    ActivationQuantizer,
    BitPolicy,
    BitWidths,
    log_quantizer,
    minifloat_quantizer,
    quantized_copy,
    trace,
)
from synq_fast.quant.balance import BALANCED, balance_weights
from synq_fast.quant.bits import HIGHEST
from synq_fast.quant.log_quantizer import LogQuantizer
from synq_fast.quant.minifloat_quantizer import LEAST_BITS, MinifloatQuantizer
from synq_fast.quant.placement import INTEGER
from synq_fast.quant.settings import Quantization
from synq_fast.quant.widths import Widths


def network_of(
    module: nn.Module, example: Tensor, leaves: Collection[str], recipe: Quantization
) -> fx.GraphModule:
    """The traced network that is quantized, rewritten as the recipe says.

    Raises:
        TraceError: it cannot be traced.
        ModelError: it does not have the form that is to be rewritten.
    """
    return rewritten(trace(module, example, leaves), recipe)


def rewritten(graph: fx.GraphModule, recipe: Quantization) -> fx.GraphModule:
    """The same function in the form that the recipe quantizes; the graph itself where that is it.

    Raises:
        ModelError: it does not have the form that is to be rewritten.
    """
    if recipe.rotate != "never":
        try:
            graph = rotated(graph)
        except ModelError:
            if recipe.rotate == "always":
                raise
    if recipe.equalize != "never":
        graph = equalized(graph)
        if recipe.equalize == "always" and not equalized_readers(graph):
            raise ModelError(
                "no depthwise convolution alone reads a BatchNorm that could be equalized with it; "
                'set quantization.equalize = "never" or "auto"'
            )
    if recipe.fold_norms == "never":
        return graph
    return with_foldable_norms(graph, all_of_them=recipe.fold_norms == "always")


def build_student(
    teacher: fx.GraphModule,
    bits: BitWidths | Widths,
    recipe: Quantization,
    leaves: Collection[str] = (),
) -> fx.GraphModule:
    """The quantized structure of a recipe around a traced teacher's weights, not calibrated.

    Args:
        teacher: the traced model; stays as it is.
        bits: of all quantizers that the recipe does not name, or of each.
        recipe: quantizers and their places.
        leaves: what ``leaf_names`` makes of the recipe's ``leaf_modules``.
    """

    def make_quantizer(activation_bits: int, /, *, heads: int | None) -> ActivationQuantizer:
        quantizer = ActivationQuantizer(
            activation_bits,
            policy=recipe.range,
            shrink=recipe.shrink,
            ste="clip" if recipe.ste == "clip" else "identity",
            learn=recipe.learn_ranges,
            heads=heads,
        )
        quantizer.symmetric = recipe.symmetric_activations and activation_bits == HIGHEST
        return quantizer

    def is_taken(choice: str, widest: int, activation_bits: int) -> bool:
        """Whether levels are taken that are not uniform, given the recipe's choice."""
        suits = activation_bits <= widest and recipe.placement != INTEGER
        return choice not in ("auto", "uniform") or (choice == "auto" and suits)

    def make_probabilities(activation_bits: int, /, *, heads: int | None) -> ActivationQuantizer:
        if is_taken(recipe.probabilities, log_quantizer.WIDEST, activation_bits):
            return LogQuantizer(
                activation_bits, policy=recipe.range, shrink=recipe.shrink, heads=heads
            )
        return make_quantizer(activation_bits, heads=heads)

    def make_after_gelu(activation_bits: int, /, *, heads: int | None) -> ActivationQuantizer:
        widest = minifloat_quantizer.WIDEST
        if activation_bits >= LEAST_BITS and is_taken(recipe.after_gelu, widest, activation_bits):
            return MinifloatQuantizer(activation_bits, policy=recipe.range, shrink=recipe.shrink)
        return make_quantizer(activation_bits, heads=heads)

    policy = (
        BitPolicy.of(bits, recipe.end_bits, recipe.layer_bits)
        if isinstance(bits, BitWidths)
        else bits
    )
    return quantized_copy(
        teacher,
        policy,
        placement=recipe.placement,
        make_quantizer=make_quantizer,
        weight_range=recipe.weight_range,
        weight_scheme=recipe.weight_scheme,
        head_ranges=recipe.head_ranges,
        special={"softmax": make_probabilities, "gelu": make_after_gelu},
        leaves=leaves,
    )


def round_weights(student: fx.GraphModule, recipe: Quantization) -> int:
    """Choose codes of weights as the recipe says, in place; how many are not the nearest."""
    return balance_weights(student) if recipe.weight_rounding == BALANCED else 0
