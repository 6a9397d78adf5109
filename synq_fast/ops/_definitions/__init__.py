"""The registered ops: schemas, fakes, references and Python autograd, one module per op family."""

from synq_fast.ops._definitions import (
    bn_statistics_loss,
    cam_alignment_loss,
    channel_moments,
    distillation_loss,
    fake_quantize,
    fake_quantize_learned,
    grad_cam,
    low_pass,
    patch_similarity_entropy,
    ranges,
    relu_fake_quantize,
)
from synq_fast.ops._op import Op

_FAMILIES = (
    bn_statistics_loss,
    cam_alignment_loss,
    channel_moments,
    distillation_loss,
    fake_quantize,
    fake_quantize_learned,
    grad_cam,
    low_pass,
    patch_similarity_entropy,
    ranges,
    relu_fake_quantize,
)
OPS: dict[str, Op] = {name: op for family in _FAMILIES for name, op in family.OPS.items()}
