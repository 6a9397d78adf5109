"""BatchNorm statistics of a quantized network, estimated again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from synq_fast.errors import ModelError
from synq_fast.fields import batch, flag
from synq_fast.graph import called_module
from synq_fast.quant import held_weights
from synq_fast.runtime.out_of_memory import memory_errors
from synq_fast.runtime.precision import autocast, tensor_float32

_LARGEST_CHANGE = 4.0
"""Of a spread: a channel that hardly varies on the images says little of others."""


@dataclass(frozen=True)
class NormStatistics:
    """BatchNorm statistics of the quantized network, estimated again on its own values."""

    images: int = batch(256, "what they are estimated on, all at once in memory", 2)
    spread: bool = flag(True, "correct the variances too, not the means alone")


Moments = tuple[Tensor, Tensor]
"""Mean and biased variance (C,) float32 of a BatchNorm's input."""


class _Observed(fx.Interpreter):
    """Runs a network and sees what its BatchNorms read."""

    def __init__(self, network: fx.GraphModule, norms: Collection[str]) -> None:
        super().__init__(network)
        self.network, self.norms = network, norms
        self.moments: dict[str, Moments] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.norms:
            x = self.env[n.all_input_nodes[0]]
            variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
            self.moments[n.name] = (mean, variance)
            self.seen(n)
        return super().run_node(n)

    def seen(self, node: fx.Node) -> None:
        """Called before a BatchNorm runs."""


class _Corrected(_Observed):
    """Runs a quantized network, and corrects each BatchNorm before it runs."""

    def __init__(
        self,
        network: fx.GraphModule,
        norms: Collection[str],
        wanted: dict[str, Moments],
        spread: bool,
    ) -> None:
        super().__init__(network, norms)
        self.wanted, self.spread = wanted, spread

    def seen(self, node: fx.Node) -> None:
        norm = called_module(self.network, node)
        assert isinstance(norm, nn.BatchNorm2d)
        correct(norm, self.moments[node.name], self.wanted[node.name], self.spread)


@torch.no_grad()
def correct(norm: nn.BatchNorm2d, found: Moments, wanted: Moments, spread: bool = True) -> None:
    """Change a BatchNorm's statistics so that its output keeps the float network's moments.

    With the moments (m, v) of the float network's input and (m', v') of the quantized one's on the
    same images, r^2 = v' / v: the running variance becomes r^2 times as large, and the running
    mean u becomes m' - r (m - u), so that (m' - u') / r = m - u.

    Args:
        norm: of the quantized network, with the float one's statistics; changed in place.
        found: moments of its input.
        wanted: those of the float network's.
        spread: whether the variance is corrected; else r = 1.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    (mean, variance), (wanted_mean, wanted_variance) = found, wanted
    ratio = torch.ones_like(mean)
    if spread:
        ratio = ((variance + norm.eps) / (wanted_variance + norm.eps)).sqrt()
        ratio = ratio.clamp(1 / _LARGEST_CHANGE, _LARGEST_CHANGE)
    norm.running_mean.copy_(mean - ratio * (wanted_mean - norm.running_mean))
    running = ratio.square() * (norm.running_var + norm.eps) - norm.eps
    norm.running_var.copy_(running.clamp_min(0))


def correctable(student: fx.GraphModule, norms: Collection[str]) -> list[str]:
    """Those calls of BatchNorms whose statistics are their own; one that is called twice has two.

    Args:
        student: the quantized network.
        norms: names of its BatchNorm2d calls.
    """
    nodes = [node for node in student.graph.nodes if node.name in norms]
    calls = Counter(called_module(student, node) for node in nodes)
    return [
        node.name
        for node in nodes
        if calls[norm := called_module(student, node)] == 1
        and isinstance(norm, nn.BatchNorm2d)
        and norm.running_mean is not None
    ]


@torch.no_grad()
def estimate_norms(
    student: fx.GraphModule,
    teacher: fx.GraphModule,
    norms: Collection[str],
    images: Tensor,
    *,
    spread: bool = True,
    precision: str = "float32",
) -> int:
    """Estimate the statistics of a student's BatchNorms again, so that its values are centred.

    In one pass, in order: each BatchNorm is corrected on what those before it, already corrected,
    let through. Weights, factors and ranges stay.

    Args:
        student: quantized network in evaluation mode with the teacher's statistics; changed.
        teacher: the float network, of the same names.
        norms: names of the BatchNorm2d calls.
        images: (B, C, H, W), all at once.
        spread: whether variances are corrected beside means.
        precision: of both networks, as in fine-tuning.

    Returns:
        How many were corrected; one that is called several times stays as it is.

    Raises:
        ModelError: there is none with statistics of its own.
        OutOfMemoryError: the images do not fit.
    """
    own = correctable(student, norms)
    if not own:
        raise ModelError(
            "the stage norms estimates statistics of BatchNorm2d layers again, and this model has "
            "none with running statistics of its own; take a recipe without the stage norms"
        )
    tf32 = tensor_float32(precision == "tf32")
    memory = memory_errors("the estimate of BatchNorm statistics", "lower norms.images")
    with memory, tf32, autocast(images.device, precision), held_weights(student):
        observed = _Observed(teacher, own)
        observed.run(images)
        _Corrected(student, own, observed.moments, spread).run(images)
    return len(own)
