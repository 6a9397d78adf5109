"""Values and gradients of every op, on every target, in every type and layout."""

import functools
import itertools

import pytest
import torch

from synq_fast.testing import CASES
from synq_fast.testing.conformance import DTYPES, Known, checks
from tests.conformance.targets import INTERPRETED, Target, parameters, using

# NumPy, which the interpreter runs on, tells when infinities and NaN appear, as they should.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning"),
]
INPUTS = [
    pytest.param(name, dtype, id=f"{name}-{str(dtype).removeprefix('torch.')}")
    for name, case in CASES.items()
    for dtype in (DTYPES if case.cast else DTYPES[:1])
]


@functools.lru_cache(maxsize=1)
def known(name: str, dtype: torch.dtype) -> Known:
    """What one target was compared with, for those that follow."""
    return {}


@pytest.mark.parametrize("target", parameters(emulated=True))
@pytest.mark.parametrize(("name", "dtype"), INPUTS)
def test_values_and_gradients(name: str, dtype: torch.dtype, target: Target) -> None:
    if target.slow and name == "read_range":
        pytest.skip("read_range has no kernel")
    case, turns, count, faults = CASES[name], itertools.count(), 0, []
    if INTERPRETED and dtype == torch.float16 and not case.exact:
        pytest.skip("seconds of inner loops: of the half types bfloat16 alone is interpreted")
    with using(target) as namespace:
        for check in checks(
            case,
            dtype,
            wanted=lambda sample: target.takes(case, sample, dtype, next(turns)),
            layouts=target.layouts,
            definition=target.backend == "reference",
            known=known(name, dtype),
        ):
            faults += check.faults(namespace, target.device)
            count += 1
    assert faults == [], "\n".join([f"{len(faults)} faults in {count} samples", *faults[:20]])
    assert count
