"""Powers of two after float32 arithmetic that backends round differently."""

from typing import NamedTuple

import torch

from synq_fast.testing.cases import fake_quantize_log as powers

Tensor = torch.Tensor


class UndecidedPowers(NamedTuple):
    """Where rounding errors of what is rounded to powers of two may turn a code.

    Attributes:
        change: What that changes in the value, zero elsewhere.
        turned: Where the gradient of the value jumps, at the largest level too.
        above: Where the scale has a gradient.
        ended: Where it may or may not have one.
    """

    change: Tensor
    turned: Tensor
    above: Tensor
    ended: Tensor


def undecided_powers(values: Tensor, relative: Tensor, scale: Tensor, bits: int) -> UndecidedPowers:
    """Finds the codes that relative errors of `values`, and the quantizer's own, may turn."""
    s = scale.double().nan_to_num(1.0)
    position = -torch.log2((values.double().nan_to_num(0.0) / s).clamp_min(2.0**-200))
    margin = 1.5 * relative.double().nan_to_num(0.0, 0.0, 0.0) + 1e-6
    last = min(2**bits - 2, 126)
    below = position.floor()
    near = (position - below - 0.5).abs() <= margin
    near &= (below >= 0) & (below <= last)
    # Nothing is beyond the last level, unless that is where normal numbers end.
    cut = (position - 126.0).abs() <= margin
    upper = s * torch.exp2(-below)
    change = torch.where(below < last, upper / 2, upper)
    ended = position.abs() <= margin
    return UndecidedPowers(
        torch.where(near, 1.001 * change, 0.0) + torch.where(cut, 2 * upper, 0.0),
        near | cut | ended,
        position < margin,
        ended,
    )


def oracle(
    values: Tensor, scale: Tensor, *, bits: int, gradient_scale: float = 1.0, **options: int | None
) -> Tensor:
    """The definition, with a factor on the gradient of the scale."""
    fixed = scale.detach()
    factored = fixed + gradient_scale * (scale - fixed).nan_to_num(0.0)
    return powers.oracle(values, factored, bits=bits, **options)
