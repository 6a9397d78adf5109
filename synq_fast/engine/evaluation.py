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
from torch.utils.data import DataLoader, Dataset, default_collate

from synq_fast.arguments import whole_number
from synq_fast.data import EvaluationSet, load_dataset
from synq_fast.data.decoding import worker_deaths
from synq_fast.errors import DataError, ModelError
from synq_fast.models.teacher import Teacher, module_device
from synq_fast.runtime.defaults import plain_defaults
from synq_fast.runtime.devices import chosen_device
from synq_fast.runtime.out_of_memory import memory_errors
from synq_fast.runtime.precision import tensor_float32

PRECISIONS = ("float32", "tf32", "bf16")


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


@memory_errors("evaluation", "lower the batch size, free memory, or take a machine with more")
def evaluate(
    model: nn.Module | Teacher,
    dataset: EvaluationSet | Dataset[Any] | Iterable[Any] | str | os.PathLike[str],
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: bool = False,
    precision: str = "float32",
    workers: int | None = None,
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
        progress: show a progress bar on standard error, where that is a terminal.
        precision: of the network: "float32", "tf32" (float32 in memory; only GPUs differ) or "bf16"
            (autocast). Losses are computed in float32.
        workers: processes that load images ahead; 0 loads them here. By default a folder of images
            gets as many as suit the machine, and any other dataset none.

    Returns:
        Percentages, count and mean loss.

    Raises:
        DataError: the set is empty, does not yield images and labels, or a label is not one of the
            model's classes.
        ModelError: the model does not return (B, classes) logits.
        ValueError: batch size, precision or number of workers is none.
    """
    if isinstance(dataset, (str, os.PathLike)):
        if not isinstance(model, Teacher):
            raise DataError(
                f"a dataset given by name ({os.fspath(dataset)}) needs a teacher, which knows "
                "shape and normalisation; use evaluate(model, load_dataset(name, teacher))"
            )
        dataset = load_dataset(dataset, model)
    module = model.module if isinstance(model, Teacher) else model
    batch_size = whole_number("batch_size", batch_size, 1)
    workers = None if workers is None else whole_number("workers", workers, 0)
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    target = module_device(module) if device is None else chosen_device(device)
    if device is not None:
        module.to(target)

    tally = _Tally(target)
    with (
        _eval_mode(module),
        torch.inference_mode(),
        tensor_float32(precision == "tf32"),
        worker_deaths(),
    ):
        for images, labels in _batches(dataset, batch_size, target, workers, progress):
            with torch.autocast(target.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = module(images.to(target, non_blocking=True))
            _check_batch(logits, labels)
            tally.add(logits, labels.to(target, torch.int64, non_blocking=True))
    count, (top1, top5, spoilt, loss) = tally.count, tally.sums()
    if count == 0:
        raise DataError("the dataset is empty: there is nothing to evaluate on")
    if spoilt:
        warnings.warn(
            f"the logits of {spoilt:.0f} of {count} images hold NaN; they count as wrong",
            RuntimeWarning,
            stacklevel=2,
        )
    return EvaluationResult(100.0 * top1 / count, 100.0 * top5 / count, count, loss / count)


class _Tally:
    """Sums over batches, kept on the device: the host asks for them once, at the end."""

    def __init__(self, device: torch.device) -> None:
        self.count = 0
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        valid = ~logits.isnan().any(1)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = (best == labels[:, None]) & valid[:, None]
        loss = F.cross_entropy(logits.float(), labels, reduction="none")
        found = (hits[:, 0].sum(), hits.sum(), (~valid).sum(), loss.double().sum())
        self._sums += torch.stack([value.double() for value in found])
        self.count += len(labels)

    def sums(self) -> list[float]:
        """Images right at the first place, in the first five, without a result; summed loss."""
        values: list[float] = self._sums.tolist()
        return values


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
    dataset: EvaluationSet | Dataset[Any] | Iterable[Any],
    batch_size: int,
    device: torch.device,
    workers: int | None,
    progress: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    batches: Iterable[Any]
    total: int | None = None
    if isinstance(dataset, EvaluationSet):
        batches = dataset.batches(batch_size, device=device, workers=workers)
        total = len(dataset)
    elif isinstance(dataset, Dataset):
        if hasattr(dataset, "__len__"):
            total = len(dataset)
        pinned = device.type == "cuda"
        loader = DataLoader(
            dataset,
            batch_size,
            num_workers=workers or 0,
            pin_memory=pinned,
            collate_fn=_collated,
        )
        with plain_defaults():
            batches = iter(loader) if total != 0 else ()
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
            images, labels = _as_tensor(batch[0]), _as_tensor(batch[1])
            if labels.dim() != 1 or labels.is_floating_point():
                raise DataError(
                    f"labels must be one integer per image, got {labels.dtype} of shape "
                    f"{tuple(labels.shape)}"
                )
            if len(labels):
                yield images, labels
            advance(len(labels))


def _collated(items: list[Any]) -> Any:
    with plain_defaults():
        return default_collate(items)


def _as_tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")


def _progress_bar(progress: bool, total: int | None) -> Any:
    from rich.console import Console

    console = Console(stderr=True)
    if not progress or not console.is_terminal:
        return nullcontext(lambda _: None)
    return _rich_bar(total, console)


@contextmanager
def _rich_bar(total: int | None, console: Any) -> Iterator[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("evaluate", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
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
