"""The activation quantizer: static ranges, found by calibration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from synq_fast import ops
from synq_fast.quant.full_precision import FullPrecision
from synq_fast.quant.layers import WeightQuantized, lsq_scale
from synq_fast.quant.observers import RangeObserver, build_observer
from synq_fast.quant.quantizer import Grid, grid_of, learned_grid
from synq_fast.quant.symmetric import symmetric_ends

Ste = Literal["identity", "clip"]
SHARES = 50
"""How many shares of each end are candidates for a range."""


class ActivationQuantizer(FullPrecision):
    """Fake-quantizes an activation with a frozen range, float32 in networks of any type.

    It has one range for the tensor, or one for each head of an attention, along dimension 1.

    While an observer is attached, each call first widens the range by its batch, inside
    ``bypassing`` too; afterwards the range never changes, whatever is evaluated.
    """

    range_min: Tensor
    range_max: Tensor
    bypass = False
    """Let activations through as they are; see ``bypassing``."""
    from_zero = False
    """Begin the range at zero whatever is observed: of probabilities."""
    holds_zero = False
    """Widen the range to hold zero whatever is observed: integer runtimes pad with it."""
    spacing: Literal["uniform", "log2"] = "uniform"
    """How levels lie, as ops that quantize probabilities take it."""
    small_floats = False
    """Whether levels are those of small floats, which only follow activation functions."""
    symmetric = False
    """Make the range symmetric about zero, so that the zero point is the middle code."""
    keep = 1.0
    """Share of the elements that is quantized, the others pass (QDrop); needs a learned range."""
    seed: Tensor | None = None
    """0-d int64: decides which, where ``keep`` is below 1."""
    part = (0, 1)
    """Where a call sees a part of a batch: how many images are before it, and how many in it.

    A part then keeps what it would keep within the whole, if images come one after the other in
    memory.
    """

    def __init__(
        self,
        bits: int,
        *,
        policy: str = "mse",
        shrink: float = 1.0,
        ste: Ste = "identity",
        learn: bool = False,
        heads: int | None = None,
    ) -> None:
        """Prepare a quantizer of ``bits`` bits.

        Args:
            bits: activation width, 2 to 8.
            policy: range policy, ``ema``, ``minmax``, ``mse`` or ``output``.
            shrink: factor on both ends of the range that is observed or found.
            ste: gradient outside the range, ``identity`` (passed) or ``clip`` (zeroed).
            learn: give the range a trainable gain; the gradient outside is then always zeroed.
            heads: how many ranges dimension 1 has, one for each index; None: one for all.
        """
        super().__init__()
        self.bits, self.policy, self.shrink, self.heads = bits, policy, shrink, heads
        self.ste: Ste = ste
        self.observer: RangeObserver | None = None
        shape = () if heads is None else (heads,)
        self.register_buffer("range_min", torch.zeros(shape, dtype=torch.float32, device="cpu"))
        self.register_buffer("range_max", torch.zeros(shape, dtype=torch.float32, device="cpu"))
        gain = torch.ones(shape, dtype=torch.float32, device="cpu")
        self.gain = nn.Parameter(gain) if learn else None

    def start_observing(self) -> None:
        """Begin a new range."""
        device = self.range_min.device
        self.observer = build_observer(self.policy, self.bits, device, self.heads)

    def stop_observing(self) -> None:
        """Freeze the range at what was observed."""
        self.observer = None

    def forward(self, x: Tensor) -> Tensor:
        """Quantize ``x`` of any shape; the result has its shape and type (float64: in float32)."""
        double = x.dtype == torch.float64
        if self.observer is not None:
            self._observe(self.observer, x.float() if double else x)
        if self.bypass:
            return x
        return self.quantized(x.float()).double() if double else self.quantized(x)

    def _observe(self, observer: RangeObserver, x: Tensor) -> None:
        observer.observe(x)
        low, high = observer.read()
        self.take(low * 0.0 if self.from_zero else low, high)

    def take(self, low: Tensor, high: Tensor) -> None:
        """Make that the range, shrunk and then widened to what it must hold."""
        low, high = low * self.shrink, high * self.shrink
        if self.holds_zero:
            low, high = low.clamp_max(0.0), high.clamp_min(0.0)
        if self.symmetric:
            low, high = symmetric_ends(torch.maximum(-low, high), self.bits)
        self.range_min.copy_(low)
        self.range_max.copy_(high)

    def quantized(self, x: Tensor) -> Tensor:
        """``x`` on the grid, whatever is observed or let through."""
        if self.gain is not None:
            return self._on_learned_grid(x)
        return ops.fake_quantize(
            x, self.range_min, self.range_max, self.bits, axis=self.axis, ste=self.ste
        )

    @property
    def axis(self) -> int | None:
        """The dimension that has a range for each index, as the ops take it."""
        return None if self.heads is None else 1

    def learned(self, shape: Sequence[int]) -> tuple[Grid, float]:
        """The grid now, and the factor on its gradients for values (B, ...) of a shape.

        LSQ's (arXiv 1902.08153, eq. 3), whatever part of a batch is seen at once.
        """
        factor = lsq_scale(max(1, math.prod(shape[1:]) // (self.heads or 1)), self.bits)
        if self.gain is None:
            return grid_of(self.range_min, self.range_max, self.bits), factor
        return learned_grid(self.range_min, self.range_max, self.gain, self.bits), factor

    def of_probabilities(self, shape: Sequence[int]) -> tuple[Tensor, float]:
        """The scale of a range from zero, as those ops take it, and the factor on its gradient."""
        grid, factor = self.learned(shape)
        return grid.scale, factor

    @property
    def joins(self) -> bool:
        """Whether ops compute this in one with the function before it."""
        return self.gain is not None

    def quantizes_all(self, x: Tensor) -> bool:
        """Whether a learned range is all that decides now: nothing observed, left out or passed."""
        plain = self.gain is not None and self.observer is None and not self.bypass
        return plain and self.keep == 1 and x.dtype != torch.float64

    def is_grid(self, x: Tensor, trained: bool) -> bool:
        """Whether an op with a learned grid does what this does now to ``x``.

        Args:
            x: decides by its type.
            trained: whether the gradient of ``x`` is wanted, which such an op zeroes outside.
        """
        if self.gain is not None:
            return self.quantizes_all(x)
        frozen = self.observer is None and not self.bypass and x.dtype != torch.float64
        return frozen and (self.ste == "clip" or not trained)

    def _on_learned_grid(self, x: Tensor) -> Tensor:
        grid, gradient_scale = self.learned(x.shape)
        before, images = self.part
        return ops.fake_quantize_learned(
            x,
            grid.scale,
            grid.zero_point,
            self.bits,
            axis=self.axis,
            gradient_scale=gradient_scale,
            keep=self.keep,
            seed=self.seed,
            offset=before * (x.numel() // images),
        )

    def dropped(self, y: Tensor, x: Tensor) -> Tensor:
        """``y``, the quantized ``x``, where ``keep`` does not pass ``x`` itself."""
        if self.keep == 1:
            return y
        before, images = self.part
        assert self.seed is not None
        return ops.random_mix(y, x, self.keep, self.seed, offset=before * (x.numel() // images))

    def grid(self) -> Grid:
        """Scale and zero point of the frozen range."""
        ends = (self.range_min, self.range_max)
        if self.gain is None:
            return grid_of(*ends, self.bits)
        return learned_grid(*ends, self.gain.detach(), self.bits)

    def on_range(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """``x`` on the levels of a range, whose ends are 0-d or (H,)."""
        return ops.fake_quantize(x, low, high, self.bits, axis=1 if low.dim() else None)

    def candidates(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Ranges (N,) to choose from for values between two ends, 0-d.

        Both ends times a share, or one of them alone.
        """
        shares = torch.linspace(1, 1 / SHARES, SHARES, dtype=torch.float32, device=low.device)
        whole = torch.ones_like(shares)
        lows = low * torch.cat([shares, whole, shares])
        highs = high * torch.cat([shares, shares, whole])
        return torch.minimum(lows, highs), torch.maximum(lows, highs)

    def rounded(self, x: Tensor, end: Tensor) -> Tensor:
        """``x`` on the levels from zero to an end, 0-d or (H,)."""
        return self.on_range(x, torch.zeros_like(end), end)

    def levels(self) -> Tensor:
        """The numbers that it gives out, (L,) float64, in order: of all heads together."""
        grid = self.grid()
        codes = torch.arange(grid.low, grid.high + 1, dtype=torch.float64, device="cpu")
        zero_point, scale = (v.double().cpu().view(-1, 1) for v in (grid.zero_point, grid.scale))
        levels: Tensor = ((codes + zero_point) / scale).unique()
        return levels

    def ends(self) -> tuple[Tensor, Tensor]:
        """Least and greatest value that is rounded to a level less than half a step away.

        0-d, or (H,) of heads.
        """
        grid = self.grid()
        low, high = ((code + grid.zero_point) / grid.scale for code in (grid.low, grid.high))
        half = 0.5 / grid.scale
        return low - half, high + half

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        heads = "" if self.heads is None else f", heads={self.heads}"
        return (
            f"bits={self.bits}, policy={self.policy}, shrink={self.shrink}, ste={self.ste}{heads}"
        )


@contextmanager
def observing(module: nn.Module) -> Iterator[None]:
    """Let every activation quantizer of a model find its range inside the block."""
    quantizers = [m for m in module.modules() if isinstance(m, ActivationQuantizer)]
    for quantizer in quantizers:
        quantizer.start_observing()
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.stop_observing()


@contextmanager
def bypassing(module: nn.Module) -> Iterator[None]:
    """Let a quantized model compute in floating point inside the block, weights included."""
    quantizers = [m for m in module.modules() if isinstance(m, ActivationQuantizer)]
    layers = [m for m in module.modules() if isinstance(m, WeightQuantized)]
    for quantizer in quantizers:
        quantizer.bypass = True
    for layer in layers:
        # Not the parameter itself, which the layer would then have twice.
        layer.hold(layer.weight.view_as(layer.weight))
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.bypass = False
        for layer in layers:
            layer.hold(None)
