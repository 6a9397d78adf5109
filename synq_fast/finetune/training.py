"""End-to-end fine-tuning: the optimizer, its schedule, and one update per batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from synq_fast.bank.batches import Batches
from synq_fast.finetune.micro_batch import MicroBatches
from synq_fast.finetune.settings import Finetune
from synq_fast.finetune.step import Step
from synq_fast.optimize.loop import Advice, Loop, Record
from synq_fast.optimize.named import named, part_of
from synq_fast.optimize.optimizer_state import optimizer_tensors, restore_optimizer
from synq_fast.optimize.rates import rate_on, set_rate
from synq_fast.quant import ActivationQuantizer
from synq_fast.quant.layers import WeightQuantized
from synq_fast.storage.checkpoint_file import CheckpointFile

LOG_EVERY = 20
Reduction = Callable[[Tensor], Tensor]
_MICRO_BATCH = "micro_batch"
_ADVICE = Advice(
    "fine-tuning",
    memory="free memory or lower finetune.batch_size",
    finite="Lower finetune.learning_rate or set finetune.max_gradient_norm",
    damaged="delete them and resume to calibrate and fine-tune again from the images, which are "
    "kept",
)


def build_optimizer(student: nn.Module, recipe: Finetune) -> torch.optim.Optimizer:
    """SGD or Adam over all parameters; learned ranges have their own rate and no decay.

    On a GPU the rates are tensors, which a recorded step reads anew each time.
    """
    ranges = [
        module.gain
        for module in student.modules()
        if isinstance(module, ActivationQuantizer | WeightQuantized) and module.gain is not None
    ]
    known = {id(p) for p in ranges}
    weights = [p for p in student.parameters() if id(p) not in known]
    device = weights[0].device

    def group(parameters: list[nn.Parameter], rate: float, decay: float) -> dict[str, Any]:
        return {"params": parameters, "lr": rate_on(device, rate), "weight_decay": decay}

    groups = [group(weights, recipe.learning_rate, recipe.weight_decay)]
    if ranges:
        groups.append(group(ranges, recipe.range_learning_rate, 0.0))
    if recipe.optimizer == "adam":
        return torch.optim.AdamW(groups, fused=True, capturable=True)
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


class Training:
    """Updates a calibrated student in place, batch by batch; an iteration of a ``Loop``."""

    def __init__(
        self,
        step: Step,
        student: fx.GraphModule,
        batches: Batches,
        recipe: Finetune,
        *,
        reduce: Reduction | None = None,
    ) -> None:
        """Prepare.

        Args:
            step: gives the student's parameters their gradients.
            student: what is trained.
            batches: the images of each step.
            recipe: optimizer and schedule.
            reduce: sees the terms of each step, may change the gradients, and returns the terms
                to record: several processes average both.
        """
        self.step, self.student, self.batches, self.recipe = step, student, batches, recipe
        self.reduce = reduce
        self.optimizer = build_optimizer(student, recipe)
        self.base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.micro_batches = MicroBatches()

    @property
    def names(self) -> Sequence[str]:
        """Names of the terms: those of making the images, then those of the step."""
        return (*self.batches.names, *self.step.term_names)

    def prepare(self, step: int) -> tuple[Tensor, ...]:
        """Set the rates and how far the training is; read the batch of a step."""
        self.step.done.fill_(step / max(1, self.recipe.steps))
        factor = rate_factor(self.recipe, step)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            set_rate(group, rate * factor)
        return self.batches.inputs(step)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """One batch; several processes average their gradients before the update."""
        self.optimizer.zero_grad()
        images, labels, made = self.batches.made(*inputs)
        losses = self.micro_batches(self.step, images, labels)
        terms = torch.stack([losses[name] for name in self.step.term_names])
        if self.reduce is None:
            self._update()
        return terms if made is None else torch.cat([made, terms])

    def finish(self, terms: Tensor) -> Tensor:
        """Average over the processes, where there are several, and update."""
        if self.reduce is not None:
            terms = self.reduce(terms)
            self._update()
        return terms

    def _update(self) -> None:
        if self.recipe.max_gradient_norm:
            nn.utils.clip_grad_norm_(self.step.parameters, self.recipe.max_gradient_norm)
        self.optimizer.step()

    def close(self) -> None:
        """End what reads batches in the background."""
        self.batches.close()

    def figures(self) -> Record:
        """The learning rate of the weights."""
        return {"learning_rate": float(self.optimizer.param_groups[0]["lr"])}

    def trained(self) -> Sequence[Tensor]:
        """The student's parameters."""
        return self.step.parameters

    def state(self) -> dict[str, Tensor]:
        """Model, ranges, optimizer, what makes the batches, and the size of micro-batches.

        Random states are not needed: every step seeds its own generators from its number.
        """
        size = torch.tensor(self.micro_batches.size, dtype=torch.int64, device="cpu")
        return {
            **named("model", self.student.state_dict()),
            **named("batches", self.batches.state()),
            **optimizer_tensors(self.optimizer),
            _MICRO_BATCH: size,
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back a state."""
        self.student.load_state_dict(part_of(tensors, "model"))
        self.batches.restore(part_of(tensors, "batches"))
        restore_optimizer(self.optimizer, tensors)
        self.micro_batches.size = int(tensors[_MICRO_BATCH])


def training_loop(
    training: Training, *, checkpoint: CheckpointFile | None = None, fingerprint: str = ""
) -> Loop:
    """Training to the recipe's last step."""
    recipe = training.recipe
    device = next(training.student.parameters()).device
    return Loop(
        training,
        recipe.steps,
        _ADVICE,
        device,
        every=LOG_EVERY,
        record=recipe.cuda_graph,
        checkpoint=checkpoint,
        fingerprint=fingerprint,
    )
