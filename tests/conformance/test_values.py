"""Values and gradients of every op, on every target, in every type and layout."""

import itertools

import pytest
import torch

from synq_fast.testing import CASES
from synq_fast.testing.conformance import DTYPES, checks
from tests.conformance.targets import Target, parameters, using

# NumPy, which the interpreter runs on, tells when infinities and NaN appear, as they should.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning"),
]


@pytest.mark.parametrize("target", parameters())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, dtype: torch.dtype, target: Target) -> None:
    case, count, faults = CASES[name], 0, []
    if dtype != torch.float32 and not case.cast:
        pytest.skip(f"{name} takes no half types")
    layouts = {"layouts": ("given", "channels_last")} if target.slow else {}
    turns = itertools.count()
    with using(target) as namespace:
        for check in checks(
            case,
            dtype,
            wanted=lambda sample: target.takes(sample, dtype, next(turns)),
            definition=target.backend == "reference",
            **layouts,
        ):
            faults += check.faults(namespace, target.device)
            count += 1
    assert faults == [], "\n".join([f"{len(faults)} faults in {count} samples", *faults[:20]])
    assert count >= 2
