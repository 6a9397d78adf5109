"""A recipe: the stages of a method, and the values of every part."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from synq_fast.bank.batches import Filter
from synq_fast.bank.variety import Variety
from synq_fast.fields import items, section
from synq_fast.finetune.norms import NormStatistics
from synq_fast.finetune.reconstruction.settings import Blocks
from synq_fast.finetune.settings import Finetune
from synq_fast.quant.settings import Quantization
from synq_fast.synthesis.settings import Generator, Synthesis

STAGES = ("synthesis", "generator", "calibration", "blocks", "norms", "finetune")
"""What a run can do, in the order in which it must be done."""
OPTIONAL_STAGES = ("synthesis", "generator", "blocks", "norms")
"""Those whose section says nothing to the others."""


@dataclass(frozen=True)
class Recipe:
    """A method: parts chosen and numbers set."""

    name: str
    summary: str = ""
    stages: tuple[str, ...] = items(
        ("synthesis", "calibration", "finetune"),
        "what is done, in this order: images from optimized pixels or from a generator that is "
        "trained on, activation ranges, training block by block, BatchNorm statistics, training of "
        "the whole",
        options=STAGES,
    )
    synthesis: Synthesis = section(Synthesis, "images by optimizing pixels")
    generator: Generator = section(Generator, "images from a generator")
    quantization: Quantization = section(Quantization, "quantizers and their ranges")
    blocks: Blocks = section(Blocks, "training block by block")
    norms: NormStatistics = section(NormStatistics, "BatchNorm statistics, estimated again")
    filter: Filter = section(Filter, "low-pass filter on images of a bank")
    variety: Variety = section(Variety, "what a bank's images look like in each batch")
    finetune: Finetune = section(Finetune, "training of the quantized model")


def as_table(part: Any) -> dict[str, Any]:
    """A dataclass as TOML holds it: sections are tables, and so is each of a section's parts."""
    table: dict[str, Any] = {}
    for field in fields(part):
        value, registry = getattr(part, field.name), field.metadata.get("parts")
        if registry is not None:
            names = {kind: name for name, kind in registry.items()}
            table |= {names[type(each)]: as_table(each) for each in value}
        else:
            table[field.name] = as_table(value) if is_dataclass(value) else value
    return table
