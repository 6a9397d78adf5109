"""The quantized network as synthesis sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import fx

from synq_fast.quant import Structure, Tapped, fused, held_weights
from synq_fast.synthesis.losses import Seen


class ImageStudent:
    """Shows, of images that a teacher has seen, what losses read of the quantized network."""

    def __init__(self, student: fx.GraphModule, structure: Structure) -> None:
        """Tap the logits of every attention of a calibrated student in evaluation mode."""
        names = [attention.logits for attention in structure.attentions]
        self.module = fused(student, names)
        self.tapped = Tapped(self.module, names)

    def look(self, seen: Seen) -> Seen:
        """The same with what the student shows of these images."""
        view = self.tapped(seen.images)
        return replace(seen, student=view.logits, student_attentions=view.features)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Quantize the weights once for all images that are looked at inside the block."""
        with ExitStack() as stack:
            with torch.no_grad():
                stack.enter_context(held_weights(self.module))
            yield
