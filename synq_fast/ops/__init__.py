"""Fused, differentiable ops: one public function per module, on the fastest backend built."""

from synq_fast.ops._backend import (
    BackendUnavailableError,
    available_backends,
    backend,
    current_backend,
)
from synq_fast.ops.affine_relu_fake_quantize import affine_relu_fake_quantize
from synq_fast.ops.bn_statistics_loss import bn_statistics_loss
from synq_fast.ops.bn_statistics_losses import bn_statistics_losses
from synq_fast.ops.cam_alignment_loss import cam_alignment_loss
from synq_fast.ops.channel_moments import channel_moments
from synq_fast.ops.distillation_loss import distillation_loss
from synq_fast.ops.fake_quantize import fake_quantize
from synq_fast.ops.fake_quantize_dynamic import fake_quantize_dynamic
from synq_fast.ops.fake_quantize_learned import fake_quantize_learned
from synq_fast.ops.grad_cam import grad_cam
from synq_fast.ops.grad_cam_plus_plus import grad_cam_plus_plus
from synq_fast.ops.hires_cam import hires_cam
from synq_fast.ops.layer_cam import layer_cam
from synq_fast.ops.low_pass import low_pass
from synq_fast.ops.patch_similarity_entropy import patch_similarity_entropy
from synq_fast.ops.quantize_codes import quantize_codes
from synq_fast.ops.relu_fake_quantize import relu_fake_quantize
from synq_fast.ops.search_range import search_range
from synq_fast.ops.update_range import read_range, update_range

__all__ = [
    "BackendUnavailableError",
    "affine_relu_fake_quantize",
    "available_backends",
    "backend",
    "bn_statistics_loss",
    "bn_statistics_losses",
    "cam_alignment_loss",
    "channel_moments",
    "current_backend",
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
