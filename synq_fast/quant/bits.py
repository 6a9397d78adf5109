"""Bit widths of a quantized model: ``w4a4`` as papers write them, or ``auto:4.0``."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from synq_fast.arguments import whole_number
from synq_fast.errors import ArgumentError, RecipeError

LOWEST, HIGHEST = 2, 8
WIDTHS = range(LOWEST, HIGHEST + 1)
_PATTERN = re.compile(r"w(\d+)a(\d+)", re.IGNORECASE)
_AUTO = re.compile(r"auto(?::(.*))?", re.IGNORECASE)


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


@dataclass(frozen=True)
class AutoBits:
    """Widths that are found for each network: so many bits on average, where they matter most.

    The average holds for the weights, each counted once, and for the activations, each element
    of each quantized tensor counted once, apart from one another. The image does not count.
    """

    average: float

    def __post_init__(self) -> None:
        """Refuse averages that no widths have."""
        try:
            average = float(self.average)
        except (TypeError, ValueError):
            average = math.nan
        if not LOWEST <= average <= HIGHEST:
            raise RecipeError(
                f"auto: takes the average number of bits, from {LOWEST} to {HIGHEST}, got "
                f'{self.average!r}; for example bits="auto:4.0"'
            )
        object.__setattr__(self, "average", average)

    def __str__(self) -> str:
        """Write them as ``auto:<average>``."""
        return f"auto:{self.average}"


Bits = BitWidths | AutoBits
"""What a run can be asked for."""


def parse_bits(text: str | Bits) -> Bits:
    """Read ``"w<weight bits>a<activation bits>"`` or ``"auto:<average bits>"``, in either case.

    Raises:
        RecipeError: the text has another form, or a number is not between 2 and 8.
    """
    if isinstance(text, AutoBits):
        return text
    match = _AUTO.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        return BitWidths.parse(text)
    # What is no number is refused there.
    return AutoBits(match[1])  # type: ignore[arg-type]


def folder_name(bits: Bits) -> str:
    """What the folder of a run at these widths is called: the widths without a colon."""
    return str(bits).replace(":", "-")


@dataclass(frozen=True)
class Site:
    """A layer with weights, as a policy sees it."""

    name: str
    """Qualified name of the module."""
    is_end: bool
    """Whether it is the first or the last that the network calls."""


class Policy(Protocol):
    """Says the width of every quantizer of a network."""

    def check(self, layers: Collection[str]) -> None:
        """Compare with the names of the layers that are quantized.

        Raises:
            RecipeError: the policy does not fit them.
        """

    def weight(self, site: Site) -> int:
        """Bits of a layer's weights."""
        ...

    def activation(self, name: str, readers: Iterable[Site]) -> int:
        """Bits of the activation quantizer ``name``, whose values these layers read."""
        ...


@dataclass(frozen=True)
class BitPolicy:
    """The widths of every layer's weights and of what it reads."""

    widths: BitWidths
    ends: int = 0
    """Width of the first and the last layer; 0: no other than the rest."""
    named: Mapping[str, BitWidths] = field(default_factory=dict)
    """Widths of single layers."""

    def at(self, site: Site) -> BitWidths:
        """Weights of a layer, and the activations that it reads."""
        if site.name in self.named:
            return self.named[site.name]
        return BitWidths(self.ends, self.ends) if self.ends and site.is_end else self.widths

    def check(self, layers: Collection[str]) -> None:
        """Refuse names of layers that are not there; see ``Policy``."""
        for name in self.named:
            if name not in layers:
                close = difflib.get_close_matches(name, layers, 3)
                hint = f"; did you mean {', '.join(close)}?" if close else ""
                raise RecipeError(
                    f'quantization.layer_bits: no quantized layer is named "{name}"{hint}'
                )

    def weight(self, site: Site) -> int:
        """Bits of a layer's weights."""
        return self.at(site).weight

    def activation(self, name: str, readers: Iterable[Site]) -> int:
        """Bits of an activation: the most that one of its readers asks for."""
        return max((self.at(site).activation for site in readers), default=self.widths.activation)

    @classmethod
    def of(cls, widths: BitWidths, ends: int, layers: Iterable[str]) -> BitPolicy:
        """The policy of a recipe.

        Args:
            widths: of all layers that nothing else is said of.
            ends: as the field.
            layers: ``"NAME=wXaY"`` each.

        Raises:
            RecipeError: a text has another form, or a width is not between 2 and 8.
        """
        named = {}
        for text in layers:
            name, equals, bits = text.partition("=")
            if not equals or not name.strip():
                raise RecipeError(
                    f'quantization.layer_bits takes "LAYER=wXaY", e.g. "fc=w8a8", got {text!r}'
                )
            named[name.strip()] = BitWidths.parse(bits.strip())
        return cls(widths, ends, named)
