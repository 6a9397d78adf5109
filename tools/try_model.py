"""Take one network with random weights all the way; prints what became of it as a line of JSON.

For one alone: python tools/try_model.py timm/resnet10t
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import synq_fast
from benchmarks.cases import fit_statistics
from synq_fast.errors import OutOfMemoryError, SynqFastError
from synq_fast.models import Teacher, load_teacher

SIZES = (64, 96, 128, 160)
OVERRIDES = {
    "synthesis.images": 4,
    "synthesis.batch_size": 4,
    "synthesis.steps": 1,
    "quantization.calibration_batches": 1,
    "quantization.calibration_batch_size": 4,
    "finetune.steps": 1,
    "finetune.batch_size": 2,
}
_RANDOM = [
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "orthogonal_",
    "sparse_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
]


@contextmanager
def cheap_initialization() -> Iterator[None]:
    """Draw random weights in one pass, so that a layer keeps the size of its input."""

    @torch.no_grad()
    def draw(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        fan_in = tensor.numel() / tensor.shape[0] if tensor.dim() > 1 else 1e4
        bound = math.sqrt(6 / max(fan_in, 1.0))
        return tensor.uniform_(-bound, bound)

    originals = {name: getattr(nn.init, name) for name in _RANDOM}
    try:
        for name in originals:
            setattr(nn.init, name, draw)
        yield
    finally:
        for name, function in originals.items():
            setattr(nn.init, name, function)


def smallest(teacher: Teacher) -> Teacher:
    """The teacher with the smallest images that it takes."""
    native = teacher.input_shape
    for size in SIZES:
        if size < native[-1]:
            try:
                with torch.no_grad():
                    teacher.module(torch.zeros(2, native[0], size, size))
            except Exception:  # whatever a network says of images that it was not made for
                continue
            return dataclasses.replace(teacher, input_shape=(native[0], size, size))
    return teacher


def attempt(name: str) -> dict[str, Any]:
    """Quantize, save, load and evaluate one network.

    Returns:
        ``result`` is ``ok``, ``refused`` (by an error that explains itself) or ``failed``.
    """
    started = time.perf_counter()
    row: dict[str, Any] = {"model": name}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row |= _all_the_way(name, row)
    except OutOfMemoryError as error:
        row |= {"result": "stopped", "note": str(error)}
    except SynqFastError as error:
        row |= {"result": "refused", "note": str(error)}
    except Exception as error:
        note = f"{type(error).__name__}: {error}"
        row |= {"result": "failed", "note": note, "traceback": traceback.format_exc()}
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def _all_the_way(name: str, row: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    with cheap_initialization():
        teacher = load_teacher(name, weights="random")
    for parameter in teacher.module.parameters():
        if parameter.dim() > 1 and not parameter.any():
            # A head that begins with zeros says nothing.
            nn.init.normal_(parameter.data, std=parameter.shape[-1] ** -0.5)
    teacher = smallest(teacher)
    images = torch.randn(4, *teacher.input_shape)
    row["size"] = teacher.input_shape[-1]
    fit_statistics(teacher.module, images)
    result = synq_fast.quantize(teacher, "synq-cifar", overrides=OVERRIDES, progress=False)
    row["coverage"] = result.metrics["coverage"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        result.save(path)
        with cheap_initialization():
            loaded = synq_fast.load(path)
    with torch.no_grad():
        expected, found = result.model(images), loaded(images)
    batch = [(images, torch.arange(4) % teacher.num_classes)]
    before, after = (synq_fast.evaluate(model, batch) for model in (result.model, loaded))
    if not expected.isfinite().all() or expected.std() == 0:
        return {"result": "failed", "note": "the quantized model's logits say nothing"}
    if not torch.equal(expected, found) or before != after:
        return {"result": "failed", "note": "the loaded model's logits are not the saved one's"}
    if synq_fast.coverage(loaded).as_dict() != row["coverage"]:
        return {"result": "failed", "note": "the loaded model is quantized in other places"}
    return {"result": "ok", "note": ""}


if __name__ == "__main__":
    print(json.dumps(attempt(sys.argv[1])))
