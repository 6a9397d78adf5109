"""Bit widths of a quantized model, written the way papers write them: ``w4a4``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from synq_fast.arguments import whole_number
from synq_fast.errors import ArgumentError, RecipeError

LOWEST, HIGHEST = 2, 8
_PATTERN = re.compile(r"w(\d+)a(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class BitWidths:
    """Bits of the weights and of the activations, each from 2 to 8."""

    weight: int
    activation: int

    def __post_init__(self) -> None:
        """Refuse widths that no quantizer here implements."""
        for name, bits in (("weight", self.weight), ("activation", self.activation)):
            try:
                number = whole_number(name, bits)
            except ArgumentError:
                number = 0
            if not LOWEST <= number <= HIGHEST:
                raise RecipeError(
                    f"{name} bits must be a whole number from {LOWEST} to {HIGHEST}, got {bits!r}; "
                    f'for example bits="w4a4"'
                )
            object.__setattr__(self, name, number)

    def __str__(self) -> str:
        """Write the widths as ``w<weight>a<activation>``."""
        return f"w{self.weight}a{self.activation}"

    @classmethod
    def parse(cls, text: str | BitWidths) -> BitWidths:
        """Read ``"w<weight bits>a<activation bits>"``, in either case.

        Raises:
            RecipeError: the text has another form, or a width is not between 2 and 8.
        """
        if isinstance(text, BitWidths):
            return text
        match = _PATTERN.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise RecipeError(
                f'bits must look like "w4a4" (weights {LOWEST}-{HIGHEST} bits, activations '
                f"{LOWEST}-{HIGHEST} bits), got {text!r}"
            )
        return cls(int(match[1]), int(match[2]))
