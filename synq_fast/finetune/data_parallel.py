"""Fine-tuning on several ranks: each works on its part of the batch, all take the same step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synq_fast.distributed import Ranks
from synq_fast.errors import DistributedError


def part_of_batch(ranks: Ranks, batch_size: int, section: str = "finetune") -> slice:
    """Which images of a batch of ``batch_size``, a key of a recipe's ``section``, are this rank's.

    Raises:
        DistributedError: there are more ranks than images.
    """
    if ranks.size > batch_size:
        raise DistributedError(
            f"{section}.batch_size = {batch_size} is the batch of all {ranks.size} processes "
            f"together, so some would have no image; start at most {batch_size}, or raise it"
        )
    return ranks.slice_of(batch_size)


def batch_mean(
    ranks: Ranks, parameters: Sequence[nn.Parameter], part: slice, batch_size: int
) -> BatchMean | None:
    """What averages the gradients over a batch of which this rank has a part; None: it is alone."""
    if ranks.size == 1:
        return None
    return BatchMean(ranks, parameters, (part.stop - part.start) / batch_size)


class BatchMean:
    """Turns means over each rank's part of the batch into means over the whole batch.

    One reduction of one flat buffer, after the step has finished: a rank whose step took several
    goes at it, or replayed a captured graph, still takes part in exactly one. The losses travel
    with the gradients, so that a loss that is not finite stops all ranks at the same step.
    """

    def __init__(self, ranks: Ranks, parameters: Sequence[nn.Parameter], share: float) -> None:
        """Prepare.

        Args:
            ranks: who takes part.
            parameters: those whose gradients are averaged, in the same order on every rank.
            share: this rank's part of the whole batch, 0 to 1.
        """
        self.ranks, self.parameters, self.share = ranks, parameters, share

    @torch.no_grad()
    def __call__(self, terms: Tensor) -> Tensor:
        """Average the gradients in place; returns the averaged terms (terms,)."""
        own = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([*(grad.flatten() for grad in own), terms.float()]).mul_(self.share)
        self.ranks.add(flat)
        *parts, terms = flat.split([*(grad.numel() for grad in own), len(terms)])
        for grad, part in zip(own, parts, strict=True):
            grad.copy_(part.view(grad.shape))
        return terms
