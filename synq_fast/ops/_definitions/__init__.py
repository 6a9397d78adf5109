"""The registered ops: schemas, fakes, references and Python autograd, one module per op family."""

from synq_fast.ops._definitions import (
    bn_statistics_loss,
    cam_alignment_loss,
    distillation_loss,
    grad_cam,
    low_pass,
    patch_similarity_entropy,
    ranges,
)
from synq_fast.ops._op import Op

_FAMILIES = (
    bn_statistics_loss,
    cam_alignment_loss,
    distillation_loss,
    grad_cam,
    low_pass,
    patch_similarity_entropy,
    ranges,
)
OPS: dict[str, Op] = {name: op for family in _FAMILIES for name, op in family.OPS.items()}
