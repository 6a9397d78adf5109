"""Reference of the search for the range with the least quantization error."""

import torch

from synq_fast.reference._forward_mode import constant, constant_extrema, in_forward_mode
from synq_fast.reference.fake_quantize import fake_quantize


def _by_channel(x: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Returns float32 constants, a row for each channel, or as they are without an axis."""
    x = constant(x).float()
    return x if axis is None else x.movedim(axis, 0).reshape(x.shape[axis], -1)


def _extrema(x: torch.Tensor, axis: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns minimum and maximum of what `_by_channel` gave."""
    if axis is None:
        return constant_extrema(x)
    if in_forward_mode():
        return x.amin(1), x.amax(1)
    low, high = torch.aminmax(x, dim=1)
    return low, high


@torch.no_grad()
def candidate_scores(
    x: torch.Tensor,
    bits: int,
    *,
    candidates: int = 80,
    norm: float = 2.4,
    axis: int | None = None,
) -> torch.Tensor:
    """Returns the `(candidates,)` mean errors of `x` quantized in ever smaller ranges.

    Candidate `i` scales both ends of the range of `x` by `1 - 0.01 i`. Scores are float32: errors
    above 1e16 overflow at a norm of 2.4, which the kernels avoid. With an axis they are
    `(candidates, C)`, each channel's own.
    """
    x = _by_channel(x, axis)
    x_min, x_max = _extrema(x, axis)
    of_rows = None if axis is None else 0
    scores = []
    for i in range(candidates):
        shrink = 1 - 0.01 * i
        # One candidate at a time: a batch of them would cost `candidates` copies of x.
        error = fake_quantize(x, x_min * shrink, x_max * shrink, bits, axis=of_rows) - x
        powers = error.abs_().pow_(norm)
        scores.append(powers.mean() if axis is None else powers.mean(1))
    return torch.stack(scores)


@torch.no_grad()
def search_range(
    x: torch.Tensor,
    bits: int,
    *,
    candidates: int = 80,
    norm: float = 2.4,
    axis: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the candidate range of least error; see `synq_fast.ops.search_range`."""
    scores = candidate_scores(x, bits, candidates=candidates, norm=norm, axis=axis)
    x_min, x_max = _extrema(_by_channel(x, axis), axis)
    # The index stays on the device; float64 gives the very factor that the score was taken with.
    shrink = (1 - 0.01 * scores.argmin(0).double()).float()
    return x_min * shrink, x_max * shrink
