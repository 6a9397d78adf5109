"""Grad-CAM: weights of channels."""

from synq_fast.testing.case import Nearest
from synq_fast.testing.cases._maps import call_of, kinds, map_case, upsampled

CASE = map_case(
    "grad_cam",
    call_of("grad_cam"),
    lambda: kinds(clamped=True),
    variants=({"clamp": None},),
    nearest=Nearest("upsample_bilinear2d", upsampled, lambda n, *x: n.grad_cam(*x, (32, 32))),
)
