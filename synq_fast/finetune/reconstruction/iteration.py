"""The training of one block: an iteration of a ``Loop``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from synq_fast import ops
from synq_fast.finetune.reconstruction.activations import BlockValues
from synq_fast.finetune.reconstruction.block import TrainedBlock
from synq_fast.finetune.reconstruction.settings import Blocks
from synq_fast.optimize.loop import Advice, Loop, Record
from synq_fast.optimize.optimizer_state import optimizer_tensors, restore_optimizer
from synq_fast.optimize.rates import rate_on, set_rate
from synq_fast.runtime.memory import send
from synq_fast.runtime.precision import tensor_float32
from synq_fast.runtime.seeding import generator_for, shuffled
from synq_fast.storage.checkpoint_file import CheckpointFile

LOG_EVERY = 50
_ADVICE = Advice(
    "reconstruction",
    memory="free memory or lower blocks.batch_size",
    finite="Lower the learning rates of blocks",
)
Reduction = Callable[[Tensor], Tensor]


class Reconstruction:
    """Trains a block to give the float block's values from the quantized network's.

    The local loss sums squared distances over channels and means them over the rest, as Genie
    does, so that it stands beside a penalty that sums over weights.
    """

    names = ("local", "global", "rounding")

    def __init__(
        self,
        block: TrainedBlock,
        values: Callable[[], BlockValues],
        recipe: Blocks,
        *,
        seed: int,
        index: int,
        device: torch.device,
        rest: Callable[[Tensor], Tensor] | None = None,
        curvature: Callable[[BlockValues], Tensor] | None = None,
        precision: str = "float32",
    ) -> None:
        """Prepare.

        Args:
            block: what is trained.
            values: what it reads and should give, asked for when the first step begins.
            recipe: how.
            seed: decides the order and what is dropped.
            index: the block's number, so that blocks draw differently.
            device: where the work is done.
            rest: the float blocks between this one and the last; None: no global loss.
            curvature: weights of the local loss (...), asked for when the first step begins; None:
                all count alike.
            precision: of products and convolutions on a GPU, "tf32" or else float32.
        """
        self.block, self.values, self.recipe = block, values, recipe
        self.seed, self.index, self.device = seed, index, device
        self.rest, self.curvature, self.precision = rest, curvature, precision
        self.weights: Tensor | None = None
        """What ``curvature`` gave, for the block as it was before its first step."""
        self.part = slice(None)
        """Which images of each batch; ranks that work together take one part each.

        Each draws for its part what one process alone draws for the whole batch.
        """
        self.reduce: Reduction | None = None
        """Sees the terms of each step, may change the gradients, and returns the terms to record:
        several processes average both."""
        self.penalized = torch.zeros((), dtype=torch.float32, device=device)
        self.optimizer = _optimizer(block, recipe)
        self.base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def prepare(self, step: int) -> tuple[Tensor, ...]:
        """Set rates and exponent; draw the images of a step and the seeds of what is dropped."""
        recipe = self.recipe
        share = step / max(1, recipe.steps)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            falls = 0.5 * (1 + math.cos(math.pi * share)) if group["falls"] else 1.0
            set_rate(group, rate * falls)
        late = (share - recipe.rounding_start) / max(1e-9, 1 - recipe.rounding_start)
        first, last = recipe.rounding_exponents
        self.block.exponent.fill_(first + (last - first) * max(0.0, late))
        self.penalized.fill_(recipe.rounding_weight if late >= 0 else 0.0)
        values = self.values()
        if self.curvature is not None and self.weights is None:
            self.weights = self.curvature(values)
        chosen, seeds = self._draw(step, len(values))
        return *values.take(chosen, self.device), send(seeds, self.device)

    def _draw(self, step: int, count: int) -> tuple[Tensor, Tensor]:
        """Numbers (B,) out of ``count`` and seeds (quantizers + 1,) of a step, both int64."""
        chosen = shuffled(count, self.recipe.batch_size, step, self.seed, "block", self.index)
        generator = generator_for(self.seed, "drop", self.index, step)
        seeds = torch.randint(
            2**62, (len(self.block.quantizers) + 1,), generator=generator, device="cpu"
        )
        return chosen[self.part], seeds

    def __call__(self, *inputs: Tensor) -> Tensor:
        """One batch; several processes average their gradients before the update."""
        self.optimizer.zero_grad()
        quantized, given, target, *ends, seeds = inputs
        own, *others = seeds.unbind()
        x, before = quantized, self.part.start or 0
        if self.recipe.mix < 1:
            offset = before * x[0].numel()
            x = ops.random_mix(quantized, given, self.recipe.mix, own, offset=offset)
        with tensor_float32(self.precision == "tf32"):
            y, undecided = self.block(x, self.recipe.keep, others, before)
            local, far = _distance(y, target, self.weights), torch.zeros_like(undecided)
            if self.rest is not None:
                far = self.recipe.global_weight * _distance(self.rest(y), ends[0])
            rounding = self.penalized * undecided
            (local + far + rounding).backward(inputs=self.parameters)
        if self.reduce is None:
            self.optimizer.step()
        return torch.stack([local.detach(), far.detach(), rounding.detach()])

    def finish(self, terms: Tensor) -> Tensor:
        """Average over the processes, where there are several, and update."""
        if self.reduce is not None:
            terms = self.reduce(terms)
            self.optimizer.step()
        return terms

    def figures(self) -> Record:
        """None."""
        return {}

    def trained(self) -> Sequence[Tensor]:
        """Everything that is trained."""
        return self.parameters

    def close(self) -> None:
        """Nothing."""

    def state(self) -> dict[str, Tensor]:
        """What is trained, and the optimizer; random states follow from the step's number."""
        kept = {f"trained.{i}": p.detach() for i, p in enumerate(self.parameters)}
        if self.weights is not None:
            kept["curvature"] = self.weights
        return {**kept, **optimizer_tensors(self.optimizer)}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back a state."""
        for i, parameter in enumerate(self.parameters):
            parameter.copy_(tensors[f"trained.{i}"])
        if "curvature" in tensors:
            self.weights = tensors["curvature"].to(self.device)
        restore_optimizer(self.optimizer, tensors)


def _distance(y: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Squared distance, weighted, summed over channels (dimension 1) and meant over the rest."""
    if weights is None:
        return functional.mse_loss(y, target) * y.shape[1]
    return (weights * (y - target).square()).mean() * y.shape[1]


def _optimizer(block: TrainedBlock, recipe: Blocks) -> torch.optim.Adam:
    groups: list[dict[str, Any]] = []
    for parameters, rate, falls in (
        (block.choices, recipe.rounding_learning_rate, False),
        (block.weights, recipe.weight_learning_rate, True),
        (block.weight_gains, recipe.weight_range_learning_rate, True),
        (block.gains, recipe.range_learning_rate, True),
    ):
        if parameters:
            lr = rate_on(parameters[0].device, rate)
            groups.append({"params": parameters, "lr": lr, "falls": falls})
    return torch.optim.Adam(groups, fused=True, capturable=True)


def reconstruction_loop(
    reconstruction: Reconstruction,
    *,
    checkpoint: CheckpointFile | None = None,
    fingerprint: str = "",
) -> Loop:
    """The training of one block to the recipe's last step."""
    return Loop(
        reconstruction,
        reconstruction.recipe.steps,
        _ADVICE,
        reconstruction.device,
        every=LOG_EVERY,
        record=reconstruction.recipe.cuda_graph,
        checkpoint=checkpoint,
        fingerprint=fingerprint,
    )
