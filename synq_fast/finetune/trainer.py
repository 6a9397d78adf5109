"""The fine-tuning loop: optimizer, schedule, checkpoints and the check of every loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from synq_fast.errors import NonFiniteLossError
from synq_fast.finetune.batches import BatchSource
from synq_fast.finetune.checkpoint import load_checkpoint, save_checkpoint
from synq_fast.finetune.step import SynqStep
from synq_fast.quant import ActivationQuantizer
from synq_fast.recipes.schema import Finetune

LOG_EVERY = 20
Record = dict[str, float]
Report = Callable[[Record], None]
Reduction = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def build_optimizer(student: nn.Module, recipe: Finetune) -> torch.optim.SGD:
    """SGD over all parameters; activation ranges have their own rate and no decay."""
    ranges = [
        p
        for module in student.modules()
        if isinstance(module, ActivationQuantizer)
        for p in module.parameters(recurse=False)
    ]
    known = {id(p) for p in ranges}
    weights = [p for p in student.parameters() if id(p) not in known]
    groups = [{"params": weights, "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}]
    if ranges:
        groups.append({"params": ranges, "lr": recipe.range_learning_rate, "weight_decay": 0.0})
    return torch.optim.SGD(
        groups, momentum=recipe.momentum, nesterov=recipe.nesterov and recipe.momentum > 0
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

        ``reduce`` sees the losses of each step, may change the gradients, and returns the losses
        to record: several processes average both.
        """
        self.reduce = reduce
        self.step, self.student, self.batches, self.recipe = step, student, batches, recipe
        self.checkpoint, self.fingerprint = checkpoint, fingerprint
        self.optimizer = build_optimizer(student, recipe)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.done = 0

    def resume(self) -> bool:
        """Continue from the checkpoint where there is one; says whether there was."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return False
        self.done = load_checkpoint(self.checkpoint, self.student, self.optimizer, self.fingerprint)
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
        """
        history: list[Record] = []
        window: list[Tensor] = []
        saved = time.monotonic()
        while self.done < self.recipe.steps:
            window.append(self.advance())
            finished = self.done == self.recipe.steps
            if self.done % LOG_EVERY == 0 or finished:
                record = self._checked_record(window)
                window.clear()
                history.append(record)
                if report is not None:
                    report(record)
                due = time.monotonic() - saved >= self.recipe.checkpoint_seconds
                if self.checkpoint is not None and (due or finished):
                    self._save()
                    saved = time.monotonic()
        return history

    def advance(self) -> Tensor:
        """Do one step; returns its terms in the order of ``step.term_names``."""
        factor = rate_factor(self.recipe, self.done)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        images, labels = self.batches(self.done)
        self.optimizer.zero_grad()
        losses = self.step(images, labels)
        if self.reduce is not None:
            losses = self.reduce(losses)
        if self.recipe.max_gradient_norm:
            nn.utils.clip_grad_norm_(self.step.parameters, self.recipe.max_gradient_norm)
        self.optimizer.step()
        self.done += 1
        return torch.stack([losses[name] for name in self.step.term_names])

    def _checked_record(self, window: list[Tensor]) -> Record:
        # One transfer for the whole window: the steps in between never wait for the device.
        values = torch.stack(window).cpu()
        names = self.step.term_names
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            step = self.done - len(window) + row
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
        means = dict(zip(names, values.mean(0).tolist(), strict=True))
        rate = self.optimizer.param_groups[0]["lr"]
        return {"step": self.done, "learning_rate": rate, **means}

    def _save(self) -> None:
        assert self.checkpoint is not None
        save_checkpoint(self.checkpoint, self.student, self.optimizer, self.done, self.fingerprint)
