"""Quantizers, range observers, and their placement into a traced model."""

from synq_fast.graph import trace
from synq_fast.graph.leaves import leaf_names
from synq_fast.graph.structure import Structure, find_structure
from synq_fast.graph.taps import Tapped, View
from synq_fast.quant.activations import ActivationQuantizer, observing
from synq_fast.quant.bits import BitPolicy, BitWidths
from synq_fast.quant.coverage import Coverage, coverage_of
from synq_fast.quant.fidelity import check_forms
from synq_fast.quant.fusion import energy_name, folded, fused, simplified
from synq_fast.quant.held import Held, held_weights
from synq_fast.quant.layers import QuantizedConv2d, QuantizedLinear
from synq_fast.quant.placement import PLACEMENTS, chosen_placement, quantized_copy

__all__ = [
    "PLACEMENTS",
    "ActivationQuantizer",
    "BitPolicy",
    "BitWidths",
    "Coverage",
    "Held",
    "QuantizedConv2d",
    "QuantizedLinear",
    "Structure",
    "Tapped",
    "View",
    "check_forms",
    "chosen_placement",
    "coverage_of",
    "energy_name",
    "find_structure",
    "folded",
    "fused",
    "held_weights",
    "leaf_names",
    "observing",
    "quantized_copy",
    "simplified",
    "trace",
]
