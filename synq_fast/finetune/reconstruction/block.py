"""One block of a quantized network in the form in which it is trained."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, fx, nn

from synq_fast.finetune.reconstruction.rounding import SoftRounding
from synq_fast.graph import called_module
from synq_fast.graph.nodes import constants
from synq_fast.quant import ActivationQuantizer, held_weights
from synq_fast.quant.fusion import joined
from synq_fast.quant.layers import WeightQuantized


class TrainedBlock:
    """A block whose layers round softly or straight through, and whose ranges are trained."""

    def __init__(
        self, part: fx.GraphModule, rounding: str, finished: Collection[nn.Module] = ()
    ) -> None:
        """Prepare.

        Args:
            part: the block of the student; its modules are the student's own.
            rounding: as the recipe says, ``soft`` or ``straight``.
            finished: modules that stay as they are: other blocks have them too.
        """
        modules = list(part.modules())
        own = [m for m in modules if m not in finished]
        self.layers = [m for m in own if isinstance(m, WeightQuantized)]
        self.ranges = [m for m in own if isinstance(m, ActivationQuantizer) and m.gain is not None]
        self.quantizers = [m for m in modules if isinstance(m, ActivationQuantizer)]
        fixed = constants(part.graph)
        self._of_constants = {
            called_module(part, node) for node in fixed if node.op == "call_module"
        }
        device = next((p.device for p in part.parameters()), torch.device("cpu"))
        self.exponent = torch.ones((), dtype=torch.float32, device=device)
        self.roundings: list[SoftRounding] = []
        if rounding == "soft":
            self.roundings = [SoftRounding(layer, self.exponent) for layer in self.layers]
        self.network = joined(part)

    @property
    def modules(self) -> list[nn.Module]:
        """Whose weights and ranges are trained."""
        return [*self.layers, *self.ranges]

    @property
    def choices(self) -> list[nn.Parameter]:
        """Of the soft rounding."""
        return [rounding.v for rounding in self.roundings]

    @property
    def weights(self) -> list[Tensor]:
        """Those that are trained themselves."""
        return [] if self.roundings else [layer.weight for layer in self.layers]

    @property
    def weight_gains(self) -> list[nn.Parameter]:
        """Of the layers' ranges."""
        return [layer.gain for layer in self.layers if layer.gain is not None]

    @property
    def gains(self) -> list[nn.Parameter]:
        """Of the activation ranges."""
        return [q.gain for q in self.ranges if q.gain is not None]

    def __call__(
        self, x: Tensor, keep: float, seeds: Sequence[Tensor], before: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The block's value, and how undecided its roundings are (0-d).

        Args:
            x: its input (B, ...).
            keep: share of the elements that each activation quantizer quantizes.
            seeds: 0-d int64 each, one for each quantizer.
            before: images of the whole batch before those of ``x``, which other ranks have.
        """
        for quantizer, seed in zip(self.quantizers, seeds, strict=True):
            quantizer.keep, quantizer.seed = keep, seed
            # What is the same for all images is whole on every rank.
            quantizer.part = (0, 1) if quantizer in self._of_constants else (before, len(x))
        for rounding in self.roundings:
            rounding.layer.rounding = rounding
        try:
            with held_weights(self.network):
                y: Tensor = self.network(x)
                penalties = [rounding.penalty for rounding in self.roundings]
        finally:
            for quantizer in self.quantizers:
                quantizer.keep, quantizer.seed, quantizer.part = 1.0, None, (0, 1)
            for layer in self.layers:
                layer.rounding = None
        return y, torch.stack(penalties).sum() if penalties else y.new_zeros(())

    @torch.no_grad()
    def harden(self) -> None:
        """Make the choices final: every weight lies in the middle of its step of the grid.

        Weights that were trained straight through end beside the edges between two steps
        (arXiv 2203.11086), where the smallest change of a range would move them.
        """
        for rounding in self.roundings:
            rounding.harden()
        for layer in self.layers:
            if not self.roundings:
                layer.weight.copy_(layer.derive())
