"""Quantized models on disk: safetensors with the recipe of their structure, no pickle."""

from __future__ import annotations

import base64
import json
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from synq_fast.deployment.execution import int8_form, product_form, product_reason, saturates
from synq_fast.deployment.freezing import freeze, is_frozen
from synq_fast.deployment.packed_state import fill_packed, packed_state
from synq_fast.engine.about import UNRECORDED, recorded
from synq_fast.engine.student import build_student, network_of
from synq_fast.errors import (
    ArgumentError,
    CheckpointError,
    ModelError,
    RecipeError,
    SynqFastWarning,
)
from synq_fast.graph.computation import Computation, computation, difference
from synq_fast.models import Teacher, load_teacher
from synq_fast.quant import BitWidths, Coverage, coverage_of, leaf_names
from synq_fast.quant.bits import AutoBits, Bits
from synq_fast.quant.settings import Quantization
from synq_fast.quant.widths import Widths, widths_of
from synq_fast.recipes import Recipe, read_section
from synq_fast.runtime.devices import chosen_device
from synq_fast.runtime.memory_format import channels_last
from synq_fast.runtime.out_of_memory import MORE_MEMORY, memory_errors, pass_on_memory_errors
from synq_fast.storage.files import read_tensors, write_tensors
from synq_fast.storage.paths import user_path

_KEY = "synq_fast"
_PACKED = "synq_fast_packed"
_NETWORK = ("name", "options", "input_shape", "mean", "std", "num_classes")


@dataclass(frozen=True)
class _Description:
    name: str
    options: dict[str, Any]
    bits: str
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    quantization: dict[str, object]
    structure: Computation
    widths: dict[str, Any] | None
    """Of every quantizer, where ``bits`` is an average."""


def save_model(
    path: Path, student: nn.Module, teacher: Teacher, bits: Bits, recipe: Recipe
) -> None:
    """Write the student's weights and ranges, and how to build it again from the teacher's name.

    Raises:
        ModelError: the student is not the graph that quantization made.
        StorageError: the file cannot be written.
    """
    if not isinstance(student, fx.GraphModule):
        raise ModelError(
            f"only the quantized model itself can be saved, got {type(student).__name__}; wrap or "
            "compile it after synq_fast.load"
        )
    metadata = {_KEY: json.dumps(described(student, teacher, bits, recipe))}
    write_tensors(path, {**student.state_dict(), **_computed(student)}, metadata)


def described(
    student: fx.GraphModule, teacher: Teacher, bits: Bits, recipe: Recipe
) -> dict[str, Any]:
    """How to build a student again, as JSON's values."""
    description = _Description(
        teacher.name,
        {name: recorded(value) for name, value in teacher.options.items()},
        str(bits),
        teacher.input_shape,
        teacher.mean,
        teacher.std,
        teacher.num_classes,
        asdict(recipe.quantization),
        computation(student),
        asdict(widths_of(student)) if isinstance(bits, AutoBits) else None,
    )
    return asdict(description)


def save_frozen(path: Path, frozen: fx.GraphModule, description: Mapping[str, Any]) -> None:
    """Write a frozen network, its weights as dense streams of bits.

    Args:
        path: the file.
        frozen: what ``freeze`` made of a student, without options.
        description: what ``described`` said of that.

    Raises:
        StorageError: the file cannot be written.
    """
    text = json.dumps(description).encode()
    metadata = {_PACKED: base64.b85encode(zlib.compress(text, 9)).decode()}
    write_tensors(path, packed_state(frozen), metadata)


def read_description(path: str | Path) -> dict[str, Any]:
    """What a saved model's file says of how it is built.

    Raises:
        CheckpointError: the file is missing, damaged, or no quantized model.
    """
    return _read(_model_file(path))[1]


def described_network(path: Path) -> dict[str, Any]:
    """Name, options, shape and normalisation of the network in a saved model.

    Raises:
        CheckpointError: the file is no saved model.
    """
    return {k: v for k, v in _read(path)[1].items() if k in _NETWORK}


def load_quantized(path: str | Path, model: nn.Module | None = None) -> Teacher:
    """A saved quantized model with its input shape and normalisation; see ``load``."""
    path = _model_file(path)
    state, saved = _read(path)
    recipe = read_section(Quantization, saved["quantization"], "quantization", path.name)
    base = _architecture(path, saved, model)
    # As in the engine: convolutions round differently in another memory format.
    channels_last(base.module)
    widths = saved.get("widths")
    try:
        leaves = leaf_names(base.module, recipe.leaf_modules)
        student = build_student(
            network_of(base.module, base.example(), leaves, recipe),
            Widths(**widths) if widths else BitWidths.parse(saved["bits"]),
            recipe,
            leaves,
        )
    except RecipeError as error:
        raise CheckpointError(f"{path} does not fit the model {saved['name']}: {error}") from error
    _check_structure(path, saved, student)
    if _PACKED in saved:
        student = freeze(student, strict=False)
        fill_packed(path.name, student, state)
    else:
        _fill(path, saved["name"], student, state)
    student.eval().requires_grad_(False)
    return replace(base, module=student, name=saved["name"])


def _model_file(path: str | Path) -> Path:
    path = user_path(path)
    return path / "model.safetensors" if path.is_dir() else path


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description; of a packed file the description says so."""
    try:
        state, stored = read_tensors(path)
    except OSError as error:
        raise CheckpointError(f"cannot read the quantized model {path}: {error}") from error
    if _KEY in stored:
        return state, json.loads(stored[_KEY])
    if _PACKED in stored:
        text = zlib.decompress(base64.b85decode(stored[_PACKED]))
        return state, {**json.loads(text), _PACKED: True}
    raise CheckpointError(
        f"{path} is not a model that synq-fast saved: its description is missing (is it a "
        f"float checkpoint? evaluate that with --weights)"
    )


EXECUTIONS = ("fake", "frozen", "int8")


@memory_errors("loading", MORE_MEMORY)
def load(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    execution: str = "fake",
    device: torch.device | str | None = None,
) -> nn.Module:
    """Load a quantized model that ``result.save`` or a run wrote.

    Args:
        path: a ``.safetensors`` file, or a run folder.
        model: the float architecture (any weights), needed where the teacher was a module of the
            user's and not a name.
        execution: ``fake``: quantized numbers in floating point, as it was trained; ``frozen``: the
            integer network that exported files hold, in exact arithmetic; ``int8``: that network
            in oneDNN's integer products, the fastest on x86 CPUs, best with
            ``quantization.placement = integer``; on a GPU its linear layers and 1 x 1 convolutions
            in Triton's.
        device: where the model is to run, the CPU if not said. With ``int8`` it stays there.

    Returns:
        The model in eval mode. With ``fake`` outputs are identical to those of the saved one, with
        the others they differ by roundings. A packed file holds the frozen network alone, which
        ``fake`` gives too.

    Raises:
        CheckpointError: the file is missing, damaged, not a quantized model, or does not fit: it
            names the first call in which the saved network and the architecture part.
        ModelError: the model has no integer form, or this machine cannot run it.
        SynqFastError: this machine has no such device.
    """
    target = chosen_device(device or "cpu")
    module = executed(load_quantized(path, model).module, execution, target)
    return module if device is None else module.to(target)


def executed(student: nn.Module, execution: str, device: torch.device) -> nn.Module:
    """A fake-quantized network as one of ``EXECUTIONS`` runs it on a device; see ``load``."""
    if execution not in EXECUTIONS:
        raise ArgumentError(f"execution is one of {', '.join(EXECUTIONS)}, got {execution!r}")
    on_cpu = device.type == "cpu"
    if execution == "int8" and not on_cpu and (reason := product_reason(device)) is not None:
        raise ModelError(f'execution="int8" does not run on {device}: {reason}')
    if not (isinstance(student, fx.GraphModule) and is_frozen(student)):
        if execution == "fake":
            return student
        if execution == "frozen":
            return freeze(student)
        student = freeze(student, reduce_range=on_cpu and saturates(), layer_inputs_only=True)
    if execution != "int8":
        return student
    return int8_form(student) if on_cpu else product_form(student)


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


def _architecture(path: Path, saved: dict[str, Any], model: nn.Module | None) -> Teacher:
    options = saved.get("options", {})
    lost = [k for k, v in options.items() if isinstance(v, dict) and UNRECORDED in v]
    if lost and model is None:
        raise CheckpointError(
            f'{path} was made from "{saved["name"]}" with {", ".join(lost)}, which a file cannot '
            "hold; pass the module: synq_fast.load(path, model=...)"
        )
    try:
        return load_teacher(
            model if model is not None else saved["name"],
            weights="random" if model is None else None,
            input_shape=tuple(saved["input_shape"]),
            mean=tuple(saved["mean"]),
            std=tuple(saved["std"]),
            num_classes=saved["num_classes"],
            options=None if model is not None else {k: _tupled(v) for k, v in options.items()},
        )
    except ValueError as error:
        raise CheckpointError(
            f'{path} was made from "{saved["name"]}", which cannot be built by that name '
            f"({error}); pass the module: synq_fast.load(path, model=...)"
            if model is None
            else f"{path} does not fit the given model: {error}"
        ) from error


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _check_structure(path: Path, saved: dict[str, Any], student: fx.GraphModule) -> None:
    if "structure" not in saved:
        warnings.warn(
            f"{path} was written before synq-fast recorded the structure of the network: strides, "
            "paddings and options of the architecture cannot be compared; compare its outputs, or "
            "quantize again",
            SynqFastWarning,
            stacklevel=4,
        )
        return
    parted = difference(saved["structure"], computation(student))
    if parted is not None:
        raise CheckpointError(
            f"{path} was made from another structure of {saved['name']}: {parted}. Pass the "
            "architecture that was quantized, with the options that it was built with: "
            "synq_fast.load(path, model=...)"
        )


def _computed(student: nn.Module) -> dict[str, Tensor]:
    """Buffers that a state dict leaves out: what they hold is part of the function."""
    kept = student.state_dict(keep_vars=True)
    return {name: value for name, value in student.named_buffers() if name not in kept}


def _fill(path: Path, name: str, student: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a student what a file holds, in the type that it was saved in."""
    types = {state[k].dtype for k, v in student.named_parameters() if k in state and v.dim() > 1}
    if len(types) == 1:
        student.to(types.pop())
    computed = _computed(student)
    try:
        for key, buffer in computed.items():
            value = state.pop(key, None)
            if value is not None and value.shape != buffer.shape:
                raise RuntimeError(
                    f"{key} is {tuple(value.shape)} in the file, {tuple(buffer.shape)} in the model"
                )
            if value is not None:
                buffer.copy_(value)
        student.load_state_dict(state)
    except RuntimeError as error:
        pass_on_memory_errors(error)
        raise CheckpointError(f"{path} does not fit the model {name}: {error}") from error
