"""Accuracy of a classifier on a labelled set."""

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from synq_fast.data import EvaluationSet, load_dataset
from synq_fast.errors import DataError, ModelError
from synq_fast.models.teacher import Teacher, module_device


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` measured.

    Attributes:
        top1: percent of images (0..100) whose label has the largest logit.
        top5: percent of images whose label is among the five largest logits; with fewer than five
            classes, among all of them.
        count: number of images.
        loss: mean cross-entropy in nats.
    """

    top1: float
    top5: float
    count: int
    loss: float


def evaluate(
    model: nn.Module | Teacher,
    dataset: EvaluationSet | Dataset[Any] | Iterable[Any] | str | os.PathLike[str],
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> EvaluationResult:
    """Measure accuracy and loss of a classifier.

    The model runs in eval mode under `torch.inference_mode()`, so ranges and BatchNorm statistics
    stay as they are; afterwards every submodule has the mode it had before. An image whose logits
    hold NaN counts as wrong, makes the loss NaN and causes one `RuntimeWarning`.

    Args:
        model: maps images (B, C, H, W) to logits (B, classes), or a teacher.
        dataset: an evaluation set, any dataset of (image, label) pairs, an iterable of batches
            (a `DataLoader`), or, for a teacher, a name or path that `load_dataset` takes. Images
            are expected to be normalised; `load_dataset` does that.
        batch_size: images per forward (an iterable of batches keeps its own).
        device: where to run; by default where the model is. The model is moved there.
        progress: show a progress bar on the terminal.

    Returns:
        Percentages, count and mean loss.

    Raises:
        DataError: the set is empty, does not yield images and labels, or a label is not one of the
            model's classes.
        ModelError: the model does not return (B, classes) logits.
    """
    if isinstance(dataset, (str, os.PathLike)):
        if not isinstance(model, Teacher):
            raise DataError(
                f"a dataset given by name ({os.fspath(dataset)}) needs a teacher, which knows "
                "shape and normalisation; use evaluate(model, load_dataset(name, teacher))"
            )
        dataset = load_dataset(dataset, model)
    module = model.module if isinstance(model, Teacher) else model
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if device is not None:
        module.to(device)
    target = module_device(module) if device is None else torch.device(device)

    top1 = top5 = count = spoilt = 0
    loss = 0.0
    with _eval_mode(module), torch.inference_mode():
        for images, labels in _batches(dataset, batch_size, progress):
            logits = module(images.to(target, non_blocking=True))
            labels = labels.to(target)
            _check_batch(logits, labels)
            labels = labels.long()
            valid = ~logits.isnan().any(1)
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices
            hits = (best == labels[:, None]) & valid[:, None]
            top1 += int(hits[:, 0].sum())
            top5 += int(hits.sum())
            count += len(labels)
            spoilt += len(labels) - int(valid.sum())
            loss += F.cross_entropy(logits.float(), labels, reduction="none").double().sum().item()
    if count == 0:
        raise DataError("the dataset is empty: there is nothing to evaluate on")
    if spoilt:
        warnings.warn(
            f"the logits of {spoilt} of {count} images hold NaN; they count as wrong",
            RuntimeWarning,
            stacklevel=2,
        )
    return EvaluationResult(100.0 * top1 / count, 100.0 * top5 / count, count, loss / count)


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, training in modes:
            submodule.training = training


def _batches(
    dataset: EvaluationSet | Dataset[Any] | Iterable[Any], batch_size: int, progress: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    batches: Iterable[Any]
    total: int | None = None
    if isinstance(dataset, EvaluationSet):
        batches, total = dataset.batches(batch_size), len(dataset)
    elif isinstance(dataset, Dataset):
        if hasattr(dataset, "__len__"):
            total = len(dataset)
        batches = DataLoader(dataset, batch_size) if total != 0 else ()
    elif isinstance(dataset, Iterable):
        batches = dataset
    else:
        raise DataError(
            f"cannot evaluate on {type(dataset).__name__}; expected a dataset of (image, label) "
            "pairs or an iterable of (images, labels) batches"
        )
    with _progress_bar(progress, total) as advance:
        for batch in batches:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise DataError("the dataset must yield pairs of images and labels")
            images, labels = torch.as_tensor(batch[0]), torch.as_tensor(batch[1])
            if labels.dim() != 1 or labels.is_floating_point():
                raise DataError(
                    f"labels must be one integer per image, got {labels.dtype} of shape "
                    f"{tuple(labels.shape)}"
                )
            if len(labels):
                yield images, labels
            advance(len(labels))


def _progress_bar(progress: bool, total: int | None) -> Any:
    if not progress:
        return nullcontext(lambda _: None)
    return _rich_bar(total)


@contextmanager
def _rich_bar(total: int | None) -> Iterator[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(
        "evaluate", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True
    ) as bar:
        task = bar.add_task("evaluate", total=total)
        yield lambda images: bar.advance(task, images)


def _check_batch(logits: Any, labels: Tensor) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(labels):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"for {len(labels)} images the model returned {got}, expected logits of shape "
            f"({len(labels)}, classes)"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise DataError(
            f"labels range from {low} to {high}, but the model has the classes 0 to "
            f"{logits.shape[1] - 1}; is this the right dataset for the model?"
        )
