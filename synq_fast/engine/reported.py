"""A run's folder as reports read it: whatever is there, and a word on what is not."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

from synq_fast.bank.images import sample_of
from synq_fast.engine.identity import weights_hash
from synq_fast.engine.saved_model import described_network, load_quantized
from synq_fast.engine.student import rewritten
from synq_fast.errors import DataError, RunFolderError, SynqFastError
from synq_fast.models import Teacher, load_teacher
from synq_fast.quant import Structure, find_structure, leaf_names, trace
from synq_fast.recipes import Recipe, load_recipe
from synq_fast.reporting.contents import Missing
from synq_fast.runtime.memory_format import channels_last
from synq_fast.storage.files import read_tensors
from synq_fast.storage.history import History, HistoryRecord


@dataclass(frozen=True)
class FloatNetwork:
    """The network that a run started from, with that run's weights."""

    teacher: Teacher
    graph: fx.GraphModule
    structure: Structure
    leaves: tuple[str, ...]


@dataclass
class RunFiles:
    """The folder of one run."""

    folder: Path
    identity: dict[str, Any]
    """``run.json``"""
    given: str | nn.Module | Teacher | None = None
    """The float network, where the caller has it."""
    weights: str | os.PathLike[str] | None = None
    """Its checkpoint."""
    missing: list[Missing] = field(default_factory=list)
    title: str = ""
    """What the page calls it; by default its widths."""

    @classmethod
    def open(cls, folder: Path) -> RunFiles:
        """Open the folder of a run.

        Raises:
            RunFolderError: it holds none, or one of something else.
        """
        try:
            identity = json.loads((folder / "run.json").read_text("utf-8"))
            bits = identity["bits"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{folder} holds no run: run.json cannot be read ({error})") from (
                error
            )
        if bits == "sensitivity":
            raise RunFolderError(
                f"{folder} holds a measurement of sensitivity: read its sensitivity.md; a report "
                f"is of what quantize wrote"
            )
        return cls(folder, identity, title=str(bits))

    def lacks(self, what: str, why: str) -> None:
        """Note that something cannot be shown."""
        self.missing.append(Missing(f"{self.title}: {what}", why))

    @property
    def bits(self) -> str:
        """As the run was asked for them."""
        return str(self.identity["bits"])

    @cached_property
    def about(self) -> dict[str, Any]:
        """``about.json``; of runs that have none, the network as the saved model describes it."""
        found = self._json("about.json")
        if "network" not in found and self.is_finished:
            # The model's own error is noted where it is loaded.
            with suppress(SynqFastError):
                found["network"] = described_network(self.folder / "model.safetensors")
        return found

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """``metrics.json``, or nothing."""
        return self._json("metrics.json")

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / name).read_text("utf-8"))
        except FileNotFoundError:
            self.lacks(name, "the run has not written it")
            return {}
        except (OSError, ValueError) as error:
            self.lacks(name, f"the file is damaged ({error})")
            return {}
        return found

    @property
    def is_finished(self) -> bool:
        """Whether the run has written its model."""
        return (self.folder / "model.safetensors").exists()

    @cached_property
    def recipe_text(self) -> str:
        """``recipe.toml``."""
        try:
            return (self.folder / "recipe.toml").read_text("utf-8")
        except OSError:
            return str(self.identity.get("recipe", ""))

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe; None where this version does not know all of it."""
        try:
            return load_recipe(self.folder / "recipe.toml")
        except SynqFastError as error:
            self.lacks("what depends on the recipe", f"recipe.toml cannot be read: {error}")
            return None

    @cached_property
    def bank(self) -> Path | None:
        """The folder of the images; None where it is not found."""
        noted = self.about.get("bank")
        places = [self.folder / noted] if noted else []
        places += [self.folder / "bank", self.folder.parent / "bank"]
        found = (Path(os.path.normpath(p)) for p in places if (p / "bank.json").exists())
        return next(found, None)

    def images(self, count: int) -> tuple[Tensor, Tensor, int] | None:
        """Up to ``count`` images (N, C, H, W), their labels (N,), and of how many they are.

        None where there are none. A generator's number is 0.
        """
        samples = self.folder / "samples.safetensors"
        try:
            if samples.exists():
                tensors, _ = read_tensors(samples)
                return tensors["images"][:count].float(), tensors["labels"][:count], 0
            found = sample_of(self.bank, count) if self.bank else None
        except (DataError, OSError, KeyError) as error:
            self.lacks("synthetic images", str(error))
            return None
        if found is None:
            self.lacks(
                "synthetic images",
                "none are made yet, or their folder was moved: it is looked for where the run left "
                "it, and as bank inside or beside the run folder",
            )
            return None
        return found[0].images, found[0].labels, found[1]

    def records(self) -> list[HistoryRecord]:
        """All records: of images, then of training."""
        logs = sorted(self.bank.glob("batch-*.jsonl")) if self.bank else []
        logs += [self.folder / "images.jsonl", self.folder / "log.jsonl"]
        return [record for log in logs for record in History(log).records()]

    @cached_property
    def network(self) -> Teacher | None:
        """Name, shape and normalisation, around a module that does nothing."""
        found: Mapping[str, Any] | None = self.about.get("network")
        if found is None:
            return None
        return Teacher(
            nn.Identity(),
            found["name"],
            tuple(found["input_shape"]),
            tuple(found["mean"]),
            tuple(found["std"]),
            found["num_classes"],
        )

    def release(self) -> None:
        """Let go of the networks, which are loaded again where they are asked for."""
        for name in ("_given_teacher", "float_network", "student"):
            self.__dict__.pop(name, None)

    @cached_property
    def _given_teacher(self) -> Teacher | None:
        if self.given is None or self.network is None:
            return None
        shape = self.network.input_shape
        return load_teacher(self.given, weights=self.weights, input_shape=shape)

    @cached_property
    def float_network(self) -> FloatNetwork | None:
        """The network before quantization; None, with a note, where its weights are not found."""
        found, recipe = self.about.get("network"), self.recipe
        if found is None or recipe is None:
            return None
        what = "the float network, and with it what is compared with it"
        way = "name it with --weights (weights=) or --model (teacher=)"
        try:
            teacher = self._given_teacher or load_teacher(
                found["name"],
                weights=self.weights or found.get("source"),
                input_shape=found["input_shape"],
                mean=found["mean"],
                std=found["std"],
                num_classes=found["num_classes"],
                options=found.get("options") or None,
            )
            channels_last(teacher.module)
            leaves = leaf_names(teacher.module, recipe.quantization.leaf_modules)
            example = teacher.example()
            traced = trace(teacher.module, example, leaves)
            graph = rewritten(traced, recipe.quantization)
        except SynqFastError as error:
            self.lacks(what, f"{error}; {way}")
            return None
        if weights_hash(traced) != self.identity.get("teacher"):
            self.lacks(what, f"{teacher.name} does not have the weights of this run; {way}")
            return None
        return FloatNetwork(teacher, graph, find_structure(graph, example), tuple(leaves))

    @cached_property
    def student(self) -> fx.GraphModule | None:
        """The quantized network; None, with a note, where there is none."""
        if not self.is_finished:
            self.lacks("the quantized network, its layers and maps", "the run is not finished")
            return None
        try:
            given = self._given_teacher
            loaded = load_quantized(self.folder, given.module if given else None).module
        except SynqFastError as error:
            self.lacks("the quantized network, its layers and maps", str(error))
            return None
        assert isinstance(loaded, fx.GraphModule)
        return loaded
