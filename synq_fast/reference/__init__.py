"""The ops in plain PyTorch: their definition, the oracle of the tests and the fallback."""

from synq_fast.reference.affine_relu_fake_quantize import affine_relu_fake_quantize
from synq_fast.reference.bn_statistics_loss import bn_statistics_loss
from synq_fast.reference.bn_statistics_losses import bn_statistics_losses
from synq_fast.reference.cam_alignment_loss import cam_alignment_loss
from synq_fast.reference.channel_moments import channel_moments
from synq_fast.reference.distillation_loss import distillation_loss
from synq_fast.reference.fake_quantize import fake_quantize
from synq_fast.reference.fake_quantize_dynamic import fake_quantize_dynamic
from synq_fast.reference.fake_quantize_learned import fake_quantize_learned
from synq_fast.reference.grad_cam import grad_cam
from synq_fast.reference.grad_cam_plus_plus import grad_cam_plus_plus
from synq_fast.reference.hires_cam import hires_cam
from synq_fast.reference.layer_cam import layer_cam
from synq_fast.reference.low_pass import low_pass
from synq_fast.reference.patch_similarity_entropy import patch_similarity_entropy
from synq_fast.reference.quantize_codes import quantize_codes
from synq_fast.reference.relu_fake_quantize import relu_fake_quantize
from synq_fast.reference.search_range import search_range
from synq_fast.reference.update_range import read_range, update_range

__all__ = [
    "affine_relu_fake_quantize",
    "bn_statistics_loss",
    "bn_statistics_losses",
    "cam_alignment_loss",
    "channel_moments",
    "distillation_loss",
    "fake_quantize",
    "fake_quantize_dynamic",
    "fake_quantize_learned",
    "grad_cam",
    "grad_cam_plus_plus",
    "hires_cam",
    "layer_cam",
    "low_pass",
    "patch_similarity_entropy",
    "quantize_codes",
    "read_range",
    "relu_fake_quantize",
    "search_range",
    "update_range",
]
