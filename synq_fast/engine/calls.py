"""The engine's functions: from a teacher and a recipe to a quantized model, or to its images."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synq_fast.arguments import whole_number
from synq_fast.bank.images import Bank
from synq_fast.data import EvaluationSet
from synq_fast.distributed import joined
from synq_fast.engine.asked_for import asked_for
from synq_fast.engine.result import QuantizationResult
from synq_fast.engine.run import Run
from synq_fast.engine.stages import image_bank
from synq_fast.errors import RecipeError, RunFolderError, SynqFastWarning
from synq_fast.models import Teacher
from synq_fast.quant import BitWidths
from synq_fast.quant.bits import Bits, parse_bits
from synq_fast.recipes import Recipe
from synq_fast.reporting.board import Board
from synq_fast.runtime.devices import chosen_device
from synq_fast.runtime.out_of_memory import MORE_MEMORY, memory_errors
from synq_fast.storage.paths import user_path


# Both train, also where the caller has switched gradients off.
@memory_errors("quantization", MORE_MEMORY)
@torch.inference_mode(False)
def quantize(
    teacher: str | nn.Module | Teacher,
    recipe: str | Path | Recipe | None = None,
    bits: str | Bits = "w4a4",
    input_shape: tuple[int, int, int] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    *,
    resume: bool = False,
    bank: str | Path | None = None,
    evaluation: str | Path | EvaluationSet | None = None,
    evaluate_every: int = 0,
    tensorboard: bool = False,
) -> QuantizationResult:
    """Quantize a pre-trained image classifier without data.

    Under torchrun, or in a process group of the caller's, the processes work on one run together:
    every rank calls with the same arguments and gets the same result; rank 0 writes and prints.

    Args:
        teacher: a module, a ``Teacher``, or a name that ``load_teacher`` knows.
        recipe: name or path of a recipe; by default one that suits the model and the widths, see
            ``recipes.default_recipe``, which the run names.
        bits: weight and activation width, ``"w4a4"``; or ``"auto:4.0"``, widths of each layer's
            weights and of each activation that cost least at so many bits on average, of the
            weights and of the activations' elements (``sensitivity`` says what each costs). What
            ``quantization.end_bits`` and ``layer_bits`` fix stays and counts.
        input_shape: (C, H, W) of an image; known for named teachers.
        seed: decides images, order and crops; the same seed gives the same model on one machine.
        output: run folder; without it nothing is written.
        overrides: recipe values by dotted key.
        device: where to work; by default a GPU where there is one.
        progress: show bars or lines on standard error.
        resume: continue the run in ``output`` after an interruption. A process that torchrun has
            started again does so by itself.
        bank: folder of the synthetic images, shared between runs of one teacher, seed and
            synthesis recipe; by default inside ``output``.
        evaluation: labelled images to report accuracy on; they never influence the model.
        evaluate_every: also evaluate during fine-tuning, at the first record after every so many
            steps, to see the best accuracy beside the final one.
        tensorboard: also write the records of the log and some images for TensorBoard, into
            ``tensorboard`` in ``output`` (extra ``tensorboard``).

    Raises:
        SynqFastError: one of its kinds, for a bad argument, an unusable model, a folder that is
            taken, damaged files, a loss that is not finite, or another process of the run that
            has stopped. Finished work stays in ``output``.
    """
    for given, what in ((resume, "resume continues"), (tensorboard, "tensorboard shows")):
        if given and output is None:
            raise RunFolderError(f"{what} the run in a folder: name it with output")
    chosen, widths = chosen_device(device), parse_bits(bits)
    seed = whole_number("seed", seed)
    evaluate_every = whole_number("evaluate_every", evaluate_every, 0)
    if evaluate_every and evaluation is None:
        warnings.warn(
            "evaluate_every has no effect: no labelled images are given (evaluation)",
            SynqFastWarning,
            stacklevel=2,
        )
    output = None if output is None else user_path(output)
    bank = None if bank is None else user_path(bank)
    board = Board(output / "tensorboard") if output is not None and tensorboard else None
    with joined(chosen) as ranks:
        loaded, taken, said = asked_for(teacher, recipe, input_shape, overrides, widths)
        run = Run(
            loaded,
            taken,
            widths,
            chosen,
            seed=seed,
            progress=progress,
            ranks=ranks,
            bank=bank,
            evaluate_every=evaluate_every,
            board=board,
        )
        run.reporter.line(said)
        with closing(board) if board else nullcontext():
            run.open_folder(output, resume)
            run.report_coverage()
            run.evaluate_on(evaluation)
            return run.finish(run.stages())


@memory_errors("synthesis", MORE_MEMORY)
@torch.inference_mode(False)
def synthesize(
    teacher: str | nn.Module | Teacher,
    output: str | Path,
    recipe: str | Path | Recipe | None = None,
    input_shape: tuple[int, int, int] | None = None,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Bank:
    """Make the synthetic images of a recipe alone; arguments as in ``quantize``.

    Args:
        teacher: a module, a ``Teacher``, or a name that ``load_teacher`` knows.
        output: folder of the bank; shards that it holds already are kept.
        recipe: name or path of a recipe, by default as in ``quantize``; only its synthesis section
            matters.
        input_shape: (C, H, W) of an image; known for named teachers.
        seed: decides the images.
        overrides: recipe values by dotted key.
        device: where to work; by default a GPU where there is one.
        progress: show bars or lines on standard error.

    Returns:
        The images, in memory or in their files as ``finetune.bank`` says.

    Raises:
        SynqFastError: as ``quantize``; or the recipe makes no bank.
    """
    chosen, seed = chosen_device(device), whole_number("seed", seed)
    with joined(chosen) as ranks:
        loaded, taken, said = asked_for(teacher, recipe, input_shape, overrides)
        if "synthesis" not in taken.stages:
            raise RecipeError(
                f"recipe {taken.name} has no bank of images: its stages are "
                f"{', '.join(taken.stages)}; take one with the stage synthesis"
            )
        widths = BitWidths(8, 8)
        run = Run(loaded, taken, widths, chosen, seed=seed, progress=progress, ranks=ranks)
        run.reporter.line(said)
        return image_bank(run, user_path(output))


__all__ = ["QuantizationResult", "quantize", "synthesize"]
