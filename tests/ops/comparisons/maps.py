"""The kernels of the class activation maps against float64."""

from synq_fast import ops
from tests.cam_cases import (
    CLAMPED,
    DTYPES,
    KINDS,
    TIES,
    assert_results_close,
    call,
    cases,
    results,
    tie_case,
    unclamped,
)

LAYOUTS = ("contiguous", "channels_last")


def main() -> int:
    """Goes through all kinds, types and ties; every third case without a clamp."""
    count = 0
    for kind in (*KINDS, "cam_alignment_loss"):
        ties = [] if kind == "grad_cam_plus_plus" else map(tie_case, TIES)
        for case in [*(c for d in DTYPES for c in cases(kind, d, LAYOUTS)), *ties]:
            case = unclamped(case) if kind in CLAMPED and count % 3 == 0 else case
            actual = results(lambda leaf, kind=kind, case=case: call(ops, kind, case, leaf), case)
            assert_results_close(actual, kind, case)
            count += 1
    return count
