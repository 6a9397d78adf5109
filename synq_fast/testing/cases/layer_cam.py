"""Layer-CAM: clamped weights of elements."""

from synq_fast.testing.cases._maps import call_of, kinds, map_case

CASE = map_case(
    "layer_cam",
    call_of("layer_cam"),
    lambda: kinds(clamped=True),
    variants=({"clamp": None},),
    saves=2 * 16 + 2 * 3 * 16,
)
