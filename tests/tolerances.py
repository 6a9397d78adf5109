"""Tolerances of tests that are no comparison of backends; those are in the ops' cases."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """Bounds for `torch.testing.assert_close`; an entry also says why."""

    atol: float
    rtol: float


TOLERANCES = {
    # The design's bound for every kind and size on N(0, 1) input.
    "low_pass": Tolerance(atol=5e-6, rtol=0),
    # Maps lie in [0, 1]; the sum over up to 512 channels, then the stretch.
    "cam_map": Tolerance(atol=5e-6, rtol=0),
    "cam_loss": Tolerance(atol=1e-6, rtol=1e-5),
    # The divergence sums differences of log-probabilities, each right to about 1e-7, and is
    # multiplied by alpha T^2: this bound is for a factor of one.
    "kl_per_factor": Tolerance(atol=3e-7, rtol=1e-5),
    "logit_gradient": Tolerance(atol=1e-6, rtol=1e-5),
    "cross_entropy": Tolerance(atol=1e-6, rtol=1e-6),
    "probability": Tolerance(atol=1e-6, rtol=0),
    # One rounding each of the product, the sum and the quotient, per step that still weighs.
    "running_range": Tolerance(atol=1e-7, rtol=2e-6),
    # A similarity is right to some 1e-7, and the kernels are as narrow as 0.01; relative to the
    # greatest entropy.
    "patch_entropy": Tolerance(atol=2e-5, rtol=0),
    # Per element of the sum, a few roundings of a term of at most about ten.
    "learned_gradient": Tolerance(atol=3e-7, rtol=1e-5),
    # float64 arithmetic in another order.
    "float64": Tolerance(atol=1e-12, rtol=1e-10),
}


def assert_close(actual: object, expected: object, kind: str, *, factor: float = 1.0) -> None:
    """Asserts closeness within the tolerance `kind`, its absolute part times `factor`."""
    tolerance = TOLERANCES[kind]
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        atol=tolerance.atol * factor,
        rtol=tolerance.rtol,
    )
