"""What quantization returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from synq_fast.engine.saved_model import save_model
from synq_fast.models import Teacher
from synq_fast.quant.bits import Bits
from synq_fast.recipes import Recipe
from synq_fast.storage.paths import user_path
from synq_fast.storage.run_folder import HistoryRecord

Metrics = dict[str, Any]


@dataclass
class QuantizationResult:
    """What ``quantize`` made."""

    model: nn.Module
    """Fake-quantized, in eval mode, on the device that it was made on."""
    history: list[HistoryRecord]
    """One record per logged step: ``stage``, ``step``, the mean of each loss term, and of the stage
    ``finetune`` the learning rate, of ``blocks`` the ``block`` by the name of what it gives."""
    metrics: Metrics
    """Accuracies where an evaluation set was given, seconds per phase, and the ops' ``kernels``."""
    teacher: Teacher = field(repr=False)
    bits: Bits
    recipe: Recipe = field(repr=False)

    def save(self, path: str | Path) -> None:
        """Write the model as safetensors; ``synq_fast.load`` gives identical outputs.

        Args:
            path: a ``.safetensors`` file, replaced if it is there.
        """
        save_model(user_path(path), self.model, self.teacher, self.bits, self.recipe)
