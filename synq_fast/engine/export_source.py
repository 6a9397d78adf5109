"""What is exported: a quantized model, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import fx, nn

from synq_fast.deployment.freezing import is_frozen
from synq_fast.engine.reported import RunFiles
from synq_fast.engine.result import QuantizationResult
from synq_fast.engine.saved_model import described, load_quantized, read_description
from synq_fast.engine.student import network_of
from synq_fast.errors import ModelError
from synq_fast.models import Teacher
from synq_fast.quant import leaf_names
from synq_fast.quant.settings import Quantization
from synq_fast.recipes import dump_recipe
from synq_fast.storage.paths import user_path


@dataclass(frozen=True)
class ExportSource:
    """A quantized model and what is known of it."""

    model: Teacher
    """Its module is the fake-quantized network."""
    recipe: str
    """As TOML; empty where unknown."""
    recipe_name: str
    description: dict[str, Any]
    """How to build it again."""
    bank: Path | None
    """Folder of the synthetic images."""
    float_network: Callable[[], fx.GraphModule | None]
    """The network before quantization; None where its weights are not found."""

    @property
    def network(self) -> fx.GraphModule:
        """The fake-quantized network."""
        assert isinstance(self.model.module, fx.GraphModule)
        return self.model.module


def export_source(
    model: QuantizationResult | str | Path, architecture: nn.Module | None
) -> ExportSource:
    """Find what an export needs.

    Args:
        model: what ``quantize`` returned, or the path of a saved model or run folder.
        architecture: the float architecture, where ``load`` of the path needs it.

    Raises:
        ModelError: it is wrapped, compiled or an export itself.
        CheckpointError: the path holds no quantized model.
    """
    if isinstance(model, QuantizationResult):
        if not isinstance(model.model, fx.GraphModule):
            raise ModelError(
                f"only the quantized model itself can be exported, got "
                f"{type(model.model).__name__}; wrap or compile it afterwards"
            )
        recipe = model.recipe
        return ExportSource(
            replace(model.teacher, module=model.model),
            dump_recipe(recipe),
            recipe.name,
            described(model.model, model.teacher, model.bits, recipe),
            None,
            partial(_traced, model.teacher, recipe.quantization),
        )
    path = user_path(model)
    loaded = load_quantized(path, architecture)
    if is_frozen(loaded.module):
        raise ModelError(
            f"{path} is a packed file, an export itself; export the saved model or the run folder"
        )
    folder = path if path.is_dir() else path.parent
    if not (folder / "run.json").is_file():
        return ExportSource(loaded, "", "", read_description(path), None, lambda: None)
    files = RunFiles.open(folder)
    files.given = architecture
    known = files.recipe
    return ExportSource(
        loaded,
        files.recipe_text,
        known.name if known else "",
        read_description(path),
        files.bank,
        lambda: files.float_network.graph if files.float_network else None,
    )


def _traced(teacher: Teacher, recipe: Quantization) -> fx.GraphModule:
    """The float network, in the form that was quantized."""
    leaves = leaf_names(teacher.module, recipe.leaf_modules)
    return network_of(teacher.module, teacher.example(), leaves, recipe)
