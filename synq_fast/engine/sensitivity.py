"""What each quantizer of a model costs at each width."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synq_fast.arguments import whole_number
from synq_fast.distributed import joined
from synq_fast.engine.asked_for import asked_for
from synq_fast.engine.run import Run
from synq_fast.engine.stages import sensitivity_of
from synq_fast.models import Teacher
from synq_fast.quant import BitWidths
from synq_fast.quant.bits import HIGHEST
from synq_fast.quant.sensitivity import Sensitivity
from synq_fast.recipes import Recipe
from synq_fast.runtime.devices import chosen_device
from synq_fast.runtime.out_of_memory import MORE_MEMORY, memory_errors
from synq_fast.storage.files import write_text
from synq_fast.storage.paths import user_path


# The images of a generator are trained, also where the caller has switched gradients off.
@memory_errors("the measurement", MORE_MEMORY)
@torch.inference_mode(False)
def sensitivity(
    teacher: str | nn.Module | Teacher,
    recipe: str | Path | Recipe | None = None,
    input_shape: tuple[int, int, int] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    *,
    bank: str | Path | None = None,
) -> Sensitivity:
    """Measure what each weight layer and each activation quantizer costs at each width, 2 to 8.

    That is the mean KL divergence of the logits from those of the float network, with that one
    quantizer at that width and everything else in floating point, on the synthetic images that
    the recipe calibrates on. Ranges are the recipe's: those of weights by its ``weight_range``,
    those of activations observed on the same images by its ``range``; weights are rounded to
    nearest, without training. ``quantize(bits="auto:4.0")`` chooses widths by these numbers.

    With ``output`` a killed measurement, called again, goes on where it was.

    Args:
        teacher: as ``quantize`` takes it.
        recipe: whose images and quantizers; by default as in ``quantize``.
        input_shape: (C, H, W) of an image; known for named teachers.
        seed: decides the images.
        output: folder for ``sensitivity.json`` (what ``Sensitivity.as_dict`` gives), the table
            ``sensitivity.md``, images and checkpoints; without it nothing is written.
        overrides: recipe values by dotted key.
        device: where to work; by default a GPU where there is one.
        progress: show bars or lines on standard error.
        bank: folder of the synthetic images, by default inside ``output``.

    Raises:
        SynqFastError: as ``quantize``; the folder belongs to another model, recipe or seed.
    """
    chosen, seed = chosen_device(device), whole_number("seed", seed)
    output = None if output is None else user_path(output)
    bank = None if bank is None else user_path(bank)
    with joined(chosen) as ranks:
        loaded, taken, said = asked_for(teacher, recipe, input_shape, overrides)
        widths = BitWidths(HIGHEST, HIGHEST)
        run = Run(
            loaded, taken, widths, chosen, seed=seed, progress=progress, ranks=ranks, bank=bank
        )
        run.reporter.line(said)
        found = output is not None and (output / "run.json").exists()
        run.open_folder(output, found, "sensitivity")
        result = sensitivity_of(run, run.stages(before="calibration").source)
        with ranks.first():
            if run.folder is not None:
                text = json.dumps(result.as_dict(), indent=2) + "\n"
                write_text(run.folder.path / "sensitivity.json", text)
                write_text(run.folder.path / "sensitivity.md", result.table())
        return result
