"""What a result depends on, in a form that two runs or two processes can compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from synq_fast.data import EvaluationSet
from synq_fast.graph.computation import computation
from synq_fast.models import Teacher
from synq_fast.recipes import Recipe
from synq_fast.recipes.schema import as_table

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def weights_hash(graph: fx.GraphModule) -> str:
    """A hash of a traced model's structure and of every bit of its weights."""
    digest = hashlib.sha256(json.dumps(computation(graph)).encode())
    _add(digest, {**graph.state_dict(), **dict(graph.named_buffers())})
    return digest.hexdigest()


def tensors_hash(named: Mapping[str, Tensor], *batches: tuple[Tensor, ...]) -> str:
    """A hash of every bit of some tensors."""
    digest = hashlib.sha256()
    _add(digest, named)
    for batch in batches:
        _add(digest, {str(place): value for place, value in enumerate(batch)})
    return digest.hexdigest()


def evaluation_hash(teacher: Teacher, evaluation: EvaluationSet | Iterable[Any]) -> str:
    """A hash of every bit of a network's weights and of labelled images."""
    batches = evaluation.batches(256) if isinstance(evaluation, EvaluationSet) else evaluation
    tensors = (tuple(torch.as_tensor(value) for value in batch) for batch in batches)
    return tensors_hash(teacher.module.state_dict(), *tensors)


def bank_name(recipe: Recipe, seed: int) -> str:
    """A name for the folder of a recipe's images, the same wherever they are shared."""
    return f"{fingerprint(describe(recipe.synthesis))[:12]}-seed-{seed}"


def _add(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(_raw_bytes(value))


def describe(*sections: DataclassInstance) -> dict[str, str]:
    """The values of recipe sections, by the name of their class."""
    return {type(section).__name__: json.dumps(as_table(section)) for section in sections}


def fingerprint(identity: Mapping[str, str]) -> str:
    """One hash of an identity."""
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _raw_bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
