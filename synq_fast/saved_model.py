"""Quantized models on disk: safetensors with the recipe of their structure, no pickle."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import fx, nn

from synq_fast.errors import CheckpointError, ModelError, RecipeError
from synq_fast.files import read_tensors, write_tensors
from synq_fast.memory_format import channels_last
from synq_fast.models import Teacher, load_teacher
from synq_fast.quant import (
    ActivationQuantizer,
    BitWidths,
    Coverage,
    coverage_of,
    leaf_names,
    quantized_copy,
    trace,
)
from synq_fast.recipes import Recipe, load_recipe
from synq_fast.recipes.schema import Quantization

_KEY = "synq_fast"


def build_student(
    teacher: fx.GraphModule,
    bits: BitWidths,
    recipe: Quantization,
    leaves: Collection[str] = (),
) -> fx.GraphModule:
    """The quantized structure of a recipe around a traced teacher's weights, not calibrated.

    Args:
        teacher: the traced model; stays as it is.
        bits: widths.
        recipe: quantizers and their places.
        leaves: what ``leaf_names`` makes of the recipe's ``leaf_modules``.
    """

    def make_quantizer(activation_bits: int) -> ActivationQuantizer:
        return ActivationQuantizer(
            activation_bits,
            policy=recipe.range,
            shrink=recipe.shrink,
            ste="clip" if recipe.ste == "clip" else "identity",
            learn=recipe.learn_ranges,
        )

    return quantized_copy(
        teacher,
        bits.weight,
        bits.activation,
        placement=recipe.placement,
        make_quantizer=make_quantizer,
        leaves=leaves,
    )


@dataclass(frozen=True)
class _Description:
    name: str
    bits: str
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    quantization: dict[str, object]


def save_model(
    path: Path, student: nn.Module, teacher: Teacher, bits: BitWidths, recipe: Recipe
) -> None:
    """Write the student's weights and ranges, and how to build it again from the teacher's name."""
    description = _Description(
        teacher.name,
        str(bits),
        teacher.input_shape,
        teacher.mean,
        teacher.std,
        teacher.num_classes,
        asdict(recipe.quantization),
    )
    metadata = {_KEY: json.dumps(asdict(description))}
    write_tensors(path, student.state_dict(), metadata)


def load_quantized(path: str | Path, model: nn.Module | None = None) -> Teacher:
    """A saved quantized model with its input shape and normalisation; see ``load``."""
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    try:
        state, stored = read_tensors(path)
    except OSError as error:
        raise CheckpointError(f"cannot read the quantized model {path}: {error}") from error
    text = stored.get(_KEY)
    if text is None:
        raise CheckpointError(
            f"{path} is not a model that synq-fast saved: its description is missing (is it a "
            f"float checkpoint? evaluate that with --weights)"
        )
    saved = json.loads(text)
    shape, mean, std = (tuple(saved[key]) for key in ("input_shape", "mean", "std"))
    recipe = load_recipe(
        Recipe(saved["name"]), {f"quantization.{k}": v for k, v in saved["quantization"].items()}
    )
    try:
        base = load_teacher(
            model if model is not None else saved["name"],
            weights="random" if model is None else None,
            input_shape=shape,
            mean=mean,
            std=std,
            num_classes=saved["num_classes"],
        )
    except ValueError as error:
        raise CheckpointError(
            f'{path} was made from "{saved["name"]}", which cannot be built by that name '
            f"({error}); pass the module: synq_fast.load(path, model=...)"
        ) from error
    # As in the engine: convolutions round differently in another memory format.
    channels_last(base.module)
    try:
        leaves = leaf_names(base.module, recipe.quantization.leaf_modules)
    except RecipeError as error:
        raise CheckpointError(f"{path} does not fit the model {saved['name']}: {error}") from error
    student = build_student(
        trace(base.module, base.example(), leaves),
        BitWidths.parse(saved["bits"]),
        recipe.quantization,
        leaves,
    )
    try:
        student.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the model {saved['name']}: {error}") from error
    student.eval().requires_grad_(False)
    return Teacher(student, saved["name"], base.input_shape, mean, std, base.num_classes)


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Load a quantized model that ``result.save`` or a run wrote.

    Args:
        path: a ``.safetensors`` file, or a run folder.
        model: the float architecture (any weights), needed where the teacher was a module of the
            user's and not a name.

    Returns:
        The fake-quantized model in eval mode, with outputs identical to those of the saved one.

    Raises:
        CheckpointError: the file is missing, damaged, not a quantized model, or does not fit.
    """
    return load_quantized(path, model).module


def coverage(model: nn.Module | str | Path, architecture: nn.Module | None = None) -> Coverage:
    """How many weight layers and layer inputs of a quantized model are quantized, and the rest.

    Args:
        model: what ``quantize`` or ``load`` returned, or the path of a saved model or run folder.
        architecture: the float architecture, where ``load`` of that path needs it.

    Raises:
        ModelError: the module is no quantized model.
        CheckpointError: as in ``load``.
    """
    if isinstance(model, str | Path):
        model = load(model, architecture)
    if not isinstance(model, fx.GraphModule) or "placement" not in model.meta:
        raise ModelError(
            f"{type(model).__name__} is no model that synq-fast quantized; pass result.model, what "
            f"synq_fast.load returned, or the path of a saved model"
        )
    return coverage_of(model)
