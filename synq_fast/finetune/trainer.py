"""The fine-tuning loop: optimizer, schedule, checkpoints and the check of every loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from synq_fast.bank.batches import BatchSource
from synq_fast.errors import NonFiniteLossError
from synq_fast.finetune.checkpoint import Position, load_checkpoint, save_checkpoint
from synq_fast.finetune.micro_batch import MicroBatches
from synq_fast.finetune.step import SynqStep
from synq_fast.quant import ActivationQuantizer
from synq_fast.recipes.schema import Finetune
from synq_fast.runtime.out_of_memory import memory_errors
from synq_fast.runtime.replay import Replayed
from synq_fast.storage.checkpoint_file import CheckpointFile

LOG_EVERY = 20
Record = dict[str, float]
Report = Callable[[Record], None]
Reduction = Callable[[Tensor], Tensor]


def build_optimizer(student: nn.Module, recipe: Finetune) -> torch.optim.SGD:
    """SGD over all parameters; activation ranges have their own rate and no decay.

    On a GPU the rates are tensors, which a recorded step reads anew each time.
    """
    ranges = [
        p
        for module in student.modules()
        if isinstance(module, ActivationQuantizer)
        for p in module.parameters(recurse=False)
    ]
    known = {id(p) for p in ranges}
    weights = [p for p in student.parameters() if id(p) not in known]
    device = weights[0].device

    def group(parameters: list[nn.Parameter], rate: float, decay: float) -> dict[str, Any]:
        lr = (
            torch.tensor(rate, dtype=torch.float32, device=device)
            if device.type == "cuda"
            else rate
        )
        return {"params": parameters, "lr": lr, "weight_decay": decay}

    groups = [group(weights, recipe.learning_rate, recipe.weight_decay)]
    if ranges:
        groups.append(group(ranges, recipe.range_learning_rate, 0.0))
    return torch.optim.SGD(
        groups,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov and recipe.momentum > 0,
        fused=True,
    )


def rate_factor(recipe: Finetune, step: int) -> float:
    """What the schedule multiplies the learning rates with at a step."""
    share = step / max(1, recipe.steps)
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    if recipe.schedule == "step":
        return 0.1 ** sum(share >= milestone for milestone in recipe.milestones)
    return 1.0


class Trainer:
    """Fine-tunes a calibrated student in place."""

    def __init__(
        self,
        step: SynqStep,
        student: fx.GraphModule,
        batches: BatchSource,
        recipe: Finetune,
        *,
        checkpoint: Path | None = None,
        fingerprint: str = "",
        reduce: Reduction | None = None,
    ) -> None:
        """Prepare a run; with ``checkpoint`` it can be killed at any moment and resumed.

        ``reduce`` sees the terms of each step, may change the gradients, and returns the terms
        to record: several processes average both.
        """
        self.reduce = reduce
        self.step, self.student, self.batches, self.recipe = step, student, batches, recipe
        self.fingerprint = fingerprint
        seconds = recipe.checkpoint_seconds
        self.checkpoint = None if checkpoint is None else CheckpointFile(checkpoint, seconds)
        self.optimizer = build_optimizer(student, recipe)
        self.base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        # Ranks average gradients between the backward pass and the update.
        work = self._whole_step if reduce is None else self._gradients
        self._work = Replayed(work, batches.bank.device, record=recipe.cuda_graph)
        self.micro_batches = MicroBatches()
        self.done = 0
        self.window: list[Tensor] = []
        """The terms of each step since the last record."""

    def resume(self) -> bool:
        """Continue from the last checkpoint that is whole; says whether there was one.

        Raises:
            CheckpointError: all checkpoints are damaged, or belong to another run.
        """
        if self.checkpoint is None:
            return False
        found = load_checkpoint(self.checkpoint, self.student, self.optimizer, self.fingerprint)
        if found is None:
            return False
        device = next(self.student.parameters()).device
        self.done, self.window = found.step, [terms.to(device) for terms in found.window]
        self.micro_batches.size = found.micro_batch
        return True

    def run(self, report: Report | None = None) -> list[Record]:
        """Train to the recipe's last step.

        Args:
            report: called with each record as it is made.

        Returns:
            One record per ``LOG_EVERY`` steps: ``step``, ``learning_rate`` and the mean of each
            term since the last record.

        Raises:
            NonFiniteLossError: a term or a weight is NaN or infinite; the last checkpoint stays.
            StorageError: a checkpoint cannot be written; the last one stays.
            OutOfMemoryError: not even a part of a batch fits into memory.
        """
        history: list[Record] = []
        while self.done < self.recipe.steps:
            self.window.append(self.advance())
            finished = self.done == self.recipe.steps
            if self.done % LOG_EVERY == 0 or finished:
                history.append(self._record())
                if report is not None:
                    report(history[-1])
            if self.checkpoint is not None and (finished or self.checkpoint.due):
                self.save()
        return history

    def save(self) -> None:
        """Write a checkpoint, where the run has one.

        Raises:
            NonFiniteLossError: what would be written is not finite; the last checkpoint stays.
            StorageError: it cannot be written; the last checkpoint stays.
        """
        if self.checkpoint is None:
            return
        self._check()
        position = Position(self.done, self.micro_batches.size, self.window)
        save_checkpoint(self.checkpoint, self.student, self.optimizer, position, self.fingerprint)

    def advance(self) -> Tensor:
        """Do one step; returns its terms in the order of ``step.term_names``."""
        self._set_rates()
        with memory_errors("fine-tuning", "free memory or lower finetune.batch_size"):
            terms = self._work(*self.batches.inputs(self.done))
            if self.reduce is not None:
                terms = self.reduce(terms)
                self._update()
        self.done += 1
        return terms

    def _set_rates(self) -> None:
        factor = rate_factor(self.recipe, self.done)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def _gradients(self, images: Tensor, labels: Tensor, crops: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        images = self.batches.transformed(images, crops)
        losses = self.micro_batches(self.step, images, labels)
        return torch.stack([losses[name] for name in self.step.term_names])

    def _update(self) -> None:
        if self.recipe.max_gradient_norm:
            nn.utils.clip_grad_norm_(self.step.parameters, self.recipe.max_gradient_norm)
        self.optimizer.step()

    def _whole_step(self, images: Tensor, labels: Tensor, crops: Tensor) -> Tensor:
        terms = self._gradients(images, labels, crops)
        self._update()
        return terms

    def _record(self) -> Record:
        """Means over the window, which then begins anew."""
        self._check()
        means = torch.stack(self.window).cpu().mean(0).tolist()
        self.window.clear()
        rate = float(self.optimizer.param_groups[0]["lr"])
        names = self.step.term_names
        return {"step": self.done, "learning_rate": rate, **dict(zip(names, means, strict=True))}

    def _check(self) -> None:
        # One transfer for the whole window: the steps in between never wait for the device.
        names = self.step.term_names
        values = (
            torch.stack(self.window).cpu()
            if self.window
            else torch.zeros(0, len(names), device="cpu")
        )
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            step = self.done - len(values) + row
            raise NonFiniteLossError(
                f'fine-tuning stopped at step {step}: the term "{names[column]}" is '
                f"{values[row, column].item()}. Lower finetune.learning_rate or set "
                f"finetune.max_gradient_norm; the last good checkpoint is kept"
            )
        # An update can overflow after a loss that is still finite.
        if not torch.stack([p.isfinite().all() for p in self.step.parameters]).all():
            raise NonFiniteLossError(
                f"fine-tuning stopped: the weights are not finite after step {self.done}. Lower "
                f"finetune.learning_rate or set finetune.max_gradient_norm; the last good "
                f"checkpoint is kept"
            )
