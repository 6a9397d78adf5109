"""LayerNorms whose channels get ranges alike, chosen on calibration images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, fx, nn

from synq_fast.errors import RecipeError
from synq_fast.finetune.linear_inputs import best_range, root, sampled
from synq_fast.graph import called_module
from synq_fast.graph.norm_folding import FoldableNorm, fold
from synq_fast.quant.activations import ActivationQuantizer, bypassing
from synq_fast.quant.layers import QuantizedLinear
from synq_fast.runtime.out_of_memory import memory_errors

WIDENED = 1.3
"""Synthetic images show less of a channel than real ones: its range is made so much wider."""
LEAST = 1e-3
"""Of the mean step: what a channel that hardly varies has at least."""


@dataclass(frozen=True, eq=False)
class Fold:
    """What one LayerNorm's channels are divided by and shifted by, and what that does."""

    norm: FoldableNorm
    scale: Tensor
    """(C,) float64."""
    shift: Tensor
    """(C,) float64."""
    low: float
    """Lower end of the range that all channels then have."""
    high: float
    """Its upper end."""
    error: float
    """Squared error of what the readers give on images that are held out, as it is."""
    folded_error: float
    """The same with the fold."""

    @property
    def helps(self) -> bool:
        """Whether the error falls."""
        return self.folded_error < self.error


def common_grid(
    low: Tensor, high: Tensor, bits: int, *, symmetric: bool = False
) -> tuple[Tensor, Tensor, float, float]:
    """What gives channels one grid (RepQ-ViT, arXiv 2212.08254; the zero point rounded).

    Each channel's range is made to hold zero and widened by ``WIDENED`` about its centre; then all
    have a zero point among the codes, and so has their mean.

    Args:
        low: least value of each channel (C,).
        high: greatest (C,).
        bits: of the grid.
        symmetric: the ranges are to be symmetric about zero.

    Returns:
        Scale and shift (C,) float64 of ``fold``, and the ends of the common range.
    """
    low, high = low.double().clamp_max(0), high.double().clamp_min(0)
    margin = (WIDENED - 1) / 2 * (high - low)
    low, high = low - margin, high + margin
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    last = 2**bits - 1
    step = (high - low) / last
    mean = step.mean()
    if not mean > 0:
        return torch.ones_like(step), torch.zeros_like(step), 0.0, 0.0
    step = step.clamp_min(LEAST * mean)
    common = step.mean()
    if symmetric:
        return step / common, torch.zeros_like(step), *_ends(common, last / 2, last)
    points = (-low / step).round().clamp(0, last)
    point = points.mean().round()
    return step / common, common * (point - points), *_ends(common, float(point), last)


def _ends(step: Tensor, point: float, last: int) -> tuple[float, float]:
    return -point * float(step), (last - point) * float(step)


@torch.no_grad()
def measure_folds(
    student: fx.GraphModule, norms: Sequence[FoldableNorm], batches: Sequence[Tensor]
) -> list[Fold]:
    """What each fold would be, and the error of what the readers give with and without it.

    All values are those of the float network, so that no order matters. The errors are those of a
    quarter of the batches, one at least, or of a single batch's images; the ranges and weights that
    they are measured with are found on the rest, as the recipe finds them. The fold itself is that
    of all.

    Args:
        student: quantized network without ranges; its weights are the float network's.
        norms: what ``foldable_norms`` finds in its float network.
        batches: images (B, C, H, W) each.

    Returns:
        One for each norm between which and all its readers a range is quantized, in order.

    Raises:
        RecipeError: there is a single image, and so none to hold out.
        OutOfMemoryError: a batch does not fit.
    """
    seen = [
        _Norm(norm, [_Reader(*pair) for pair in pairs])
        for norm in norms
        if (pairs := quantized_readers(student, norm)) is not None
    ]
    fitted, held_out = _split(batches)
    memory = memory_errors("the folds of norms", "lower quantization.calibration_batch_size")
    with memory, bypassing(student):
        _show(student, seen, _observe, fitted)
        for norm in seen:
            grid = norm.grid()
            for reader in norm.readers:
                reader.fit(*grid)
        _show(student, seen, _compare, held_out)
    return [norm.fold() for norm in seen]


@torch.no_grad()
def apply_folds(student: fx.GraphModule, folds: Sequence[Fold]) -> None:
    """Fold norms of a quantized network, and find the ranges of its weights again, in place."""
    for each in folds:
        fold(student, each.norm, each.scale, each.shift)
        for layer, _ in quantized_readers(student, each.norm) or ():
            layer.renew_ranges()


def take_ranges(student: fx.GraphModule, folds: Sequence[Fold]) -> None:
    """Give what reads folded norms the range that all their channels have."""
    for each in folds:
        for _, quantizer in quantized_readers(student, each.norm) or ():
            ends = quantizer.range_min.new_tensor([each.low, each.high])
            quantizer.take(*ends)


def quantized_readers(
    student: fx.GraphModule, norm: FoldableNorm
) -> list[tuple[QuantizedLinear, ActivationQuantizer]] | None:
    """The layers that read a norm, each with the quantizer before it; None where one has none."""
    found = []
    for node in student.graph.nodes:
        layer = called_module(student, node)
        if node.op != "call_module" or node.target not in norm.readers:
            continue
        before = node.all_input_nodes[0]
        while before.name != norm.call:
            quantizer = called_module(student, before)
            if isinstance(quantizer, ActivationQuantizer):
                break
            before = before.all_input_nodes[0]
        else:
            return None
        if not isinstance(layer, QuantizedLinear) or quantizer.heads is not None:
            return None
        found.append((layer, quantizer))
    return found


class _Reader:
    """A layer behind a norm, and how it would be quantized with and without the fold."""

    def __init__(self, layer: QuantizedLinear, quantizer: ActivationQuantizer) -> None:
        self.layer, self.bits, self.symmetric = layer, quantizer.bits, quantizer.symmetric
        self.plain, self.folded = copy.deepcopy(quantizer), copy.deepcopy(quantizer)
        self.plain.start_observing()
        self.rows: Tensor | None = None
        """Some of those (N, C) that ranges are found on."""

    def fit(self, scale: Tensor, shift: Tensor, low: float, high: float) -> None:
        """Find ranges and weights, without the fold and with it."""
        self.plain.stop_observing()
        self.folded.take(*self.folded.range_min.new_tensor([low, high]))
        assert self.rows is not None
        weight = self.layer.weight
        self.scale, self.shift = (v.to(weight) for v in (scale, shift))
        self.weights = weight.detach(), weight.detach() * self.scale
        self.quantized_weights = [self._quantized(w) for w in self.weights]
        if self.plain.policy == "output":
            rows = self.rows, self.rows / self.scale - self.shift
            for quantizer, x, w in zip((self.plain, self.folded), rows, self.weights, strict=True):
                product = partial(torch.matmul, other=root(w.float()).T)
                quantizer.take(*best_range(x, product, quantizer))

    def _quantized(self, weight: Tensor) -> Tensor:
        layer = copy.deepcopy(self.layer)
        layer.hold(None)
        layer.weight = nn.Parameter(weight)
        layer.renew_ranges()
        return layer.derive()

    def errors(self, rows: Tensor) -> Tensor:
        """The squared errors of the products of rows (N, C), without and with the fold."""
        inputs = rows, rows / self.scale - self.shift
        quantizers = self.plain, self.folded
        found = []
        for x, q, w, own in zip(
            inputs, quantizers, self.weights, self.quantized_weights, strict=True
        ):
            difference = q.quantized(x) @ own.T - x @ w.T
            found.append(difference.double().square().sum())
        return torch.stack(found)


class _Norm:
    """A norm with its readers, the ends of its channels, and the errors."""

    def __init__(self, norm: FoldableNorm, readers: list[_Reader]) -> None:
        self.norm, self.readers = norm, readers
        self.ends: tuple[Tensor, Tensor] | None = None
        self.errors = torch.zeros(2, dtype=torch.float64)

    def widen(self, rows: Tensor) -> None:
        """Let the channels' ends hold rows (N, C)."""
        low, high = rows.amin(0), rows.amax(0)
        if self.ends is not None:
            low, high = torch.minimum(low, self.ends[0]), torch.maximum(high, self.ends[1])
        self.ends = low, high

    def grid(self) -> tuple[Tensor, Tensor, float, float]:
        """As ``common_grid`` gives it."""
        assert self.ends is not None
        bits = min(reader.bits for reader in self.readers)
        symmetric = any(reader.symmetric for reader in self.readers)
        return common_grid(*self.ends, bits, symmetric=symmetric)

    def fold(self) -> Fold:
        """What is found."""
        scale, shift, *ends = self.grid()
        return Fold(self.norm, scale.cpu(), shift.cpu(), *ends, *self.errors.tolist())


def _observe(norm: _Norm, reader: _Reader, rows: Tensor) -> None:
    norm.widen(rows)
    reader.plain.bypass = True
    reader.plain(rows)
    reader.plain.bypass = False
    if reader.rows is None:
        reader.rows = sampled(rows)


def _compare(norm: _Norm, reader: _Reader, rows: Tensor) -> None:
    norm.widen(rows)
    norm.errors += reader.errors(sampled(rows)).cpu()


def _split(batches: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """What is fitted, and the quarter that is held out."""
    if len(batches) > 1:
        kept = _kept(len(batches))
        return batches[:kept], batches[kept:]
    (images,) = batches
    if len(images) == 1:
        raise RecipeError(
            "quantization.fold_norms holds out a part of the calibration images, and there is one "
            "image alone; raise quantization.calibration_batch_size or calibration_batches"
        )
    kept = _kept(len(images))
    return [images[:kept]], [images[kept:]]


def _kept(count: int) -> int:
    return count - max(1, count // 4)


def _show(
    student: fx.GraphModule,
    norms: Sequence[_Norm],
    see: Callable[[_Norm, _Reader, Tensor], None],
    batches: Sequence[Tensor],
) -> None:
    """Run a network, and let ``see`` look at the rows that each reader gets."""

    def hook(norm: _Norm, reader: _Reader, layer: nn.Module, args: tuple[Tensor]) -> None:
        see(norm, reader, args[0].float().flatten(0, -2))

    handles = [
        reader.layer.register_forward_pre_hook(partial(hook, norm, reader))
        for norm in norms
        for reader in norm.readers
    ]
    try:
        for images in batches:
            student(images)
    finally:
        for handle in handles:
            handle.remove()
