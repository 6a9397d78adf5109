"""HiRes-CAM: weights of elements."""

from synq_fast.testing.cases._maps import call_of, kinds, map_case

CASE = map_case(
    "hires_cam",
    call_of("hires_cam"),
    lambda: kinds(clamped=False),
    saves=2 * 16 + 2 * 3 * 16,
)
