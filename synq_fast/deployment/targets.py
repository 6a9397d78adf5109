"""What runtimes want their quantized files to look like."""

from __future__ import annotations

from dataclasses import dataclass

from synq_fast.errors import ModelError, RecipeError


@dataclass(frozen=True)
class Target:
    """How activations are written for a runtime."""

    name: str
    signed: bool
    """Codes of activations are int8, not uint8."""
    centred: bool
    """Their zero point is 0."""
    integer_bias: bool
    """Biases are integers of 32 bits."""
    layer_inputs_only: bool = False
    """Only what layers multiply is quantized: the runtime leaves other roundings out anyway."""
    joins_late: bool = False
    """Layers are joined with the quantizer right before them alone, as products of two matrices."""
    runs_here: bool = True
    """Whether the file can be tried on a CPU; else its graph alone is compared."""

    def shift(self, layer: str, bits: int, zero_point: int) -> int:
        """What to take from codes that begin at 0, so that they are the target's.

        Raises:
            ModelError: the target's codes do not hold them.
        """
        if not self.signed:
            return 0
        if not self.centred:
            return 128
        highest = 2**bits - 1
        if zero_point <= 128 and highest - zero_point <= 127:
            return zero_point
        raise ModelError(
            f"{self.name} quantizes activations to int8 with zero point 0, and {layer} has {bits} "
            f"bits with zero point {zero_point}, of which codes up to {highest - zero_point} would "
            f"be left: quantize with quantization.symmetric_activations = true, or export for "
            f"another target"
        )


TARGETS = {
    target.name: target
    for target in (
        Target("ort", signed=False, centred=False, integer_bias=True, joins_late=True),
        Target("openvino", signed=False, centred=False, integer_bias=True, layer_inputs_only=True),
        Target("tensorrt", signed=True, centred=True, integer_bias=False, runs_here=False),
        Target("xnnpack", signed=True, centred=False, integer_bias=True, runs_here=False),
    )
}


def target_of(name: str) -> Target:
    """A target by name.

    Raises:
        RecipeError: there is none.
    """
    if name not in TARGETS:
        raise RecipeError(f"no export target {name!r}; there are {', '.join(TARGETS)}")
    return TARGETS[name]
