"""Reference of the search for the range with the least quantization error."""

import torch

from synq_fast.reference._forward_mode import constant, constant_extrema
from synq_fast.reference.fake_quantize import fake_quantize


@torch.no_grad()
def candidate_scores(
    x: torch.Tensor, bits: int, *, candidates: int = 80, norm: float = 2.4
) -> torch.Tensor:
    """Returns the `(candidates,)` mean errors of `x` quantized in ever smaller ranges.

    Candidate `i` scales both ends of the range of `x` by `1 - 0.01 i`. Scores are float32: errors
    above 1e16 overflow at a norm of 2.4, which the kernels avoid.
    """
    x = constant(x).float()
    x_min, x_max = constant_extrema(x)
    scores = []
    for i in range(candidates):
        shrink = 1 - 0.01 * i
        # One candidate at a time: a batch of them would cost `candidates` copies of x.
        error = fake_quantize(x, x_min * shrink, x_max * shrink, bits) - x
        scores.append(error.abs_().pow_(norm).mean())
    return torch.stack(scores)


@torch.no_grad()
def search_range(
    x: torch.Tensor, bits: int, *, candidates: int = 80, norm: float = 2.4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the candidate range of least error; see `synq_fast.ops.search_range`."""
    scores = candidate_scores(x, bits, candidates=candidates, norm=norm)
    x_min, x_max = constant_extrema(x.float())
    # The index stays on the device; float64 gives the very factor that the score was taken with.
    shrink = (1 - 0.01 * scores.argmin().double()).float()
    return x_min * shrink, x_max * shrink
