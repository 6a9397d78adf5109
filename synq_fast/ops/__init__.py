"""Fused, differentiable ops: one public function per module, on the fastest backend built.

This is the list of them: what is imported here is registered, public and tested.
"""

from typing import TYPE_CHECKING

from synq_fast.ops._backend import BackendUnavailableError as BackendUnavailableError
from synq_fast.ops._backend import available_backends as available_backends
from synq_fast.ops._backend import backend as backend
from synq_fast.ops._backend import current_backend as current_backend
from synq_fast.ops.affine_relu_fake_quantize import (
    affine_relu_fake_quantize as affine_relu_fake_quantize,
)
from synq_fast.ops.bn_statistics_loss import bn_statistics_loss as bn_statistics_loss
from synq_fast.ops.bn_statistics_losses import bn_statistics_losses as bn_statistics_losses
from synq_fast.ops.cam_alignment_loss import cam_alignment_loss as cam_alignment_loss
from synq_fast.ops.channel_moments import channel_moments as channel_moments
from synq_fast.ops.distillation_loss import distillation_loss as distillation_loss
from synq_fast.ops.fake_quantize import fake_quantize as fake_quantize
from synq_fast.ops.fake_quantize_dynamic import fake_quantize_dynamic as fake_quantize_dynamic
from synq_fast.ops.fake_quantize_learned import fake_quantize_learned as fake_quantize_learned
from synq_fast.ops.fake_quantize_log import fake_quantize_log as fake_quantize_log
from synq_fast.ops.fake_quantize_minifloat import (
    fake_quantize_minifloat as fake_quantize_minifloat,
)
from synq_fast.ops.gelu_fake_quantize import gelu_fake_quantize as gelu_fake_quantize
from synq_fast.ops.grad_cam import grad_cam as grad_cam
from synq_fast.ops.grad_cam_plus_plus import grad_cam_plus_plus as grad_cam_plus_plus
from synq_fast.ops.hardswish_fake_quantize import (
    hardswish_fake_quantize as hardswish_fake_quantize,
)
from synq_fast.ops.hires_cam import hires_cam as hires_cam
from synq_fast.ops.inter_head_similarity_loss import (
    inter_head_similarity_loss as inter_head_similarity_loss,
)
from synq_fast.ops.layer_cam import layer_cam as layer_cam
from synq_fast.ops.layer_norm_fake_quantize import (
    layer_norm_fake_quantize as layer_norm_fake_quantize,
)
from synq_fast.ops.low_pass import low_pass as low_pass
from synq_fast.ops.pack_codes import pack_codes as pack_codes
from synq_fast.ops.patch_similarity_entropy import (
    patch_similarity_entropy as patch_similarity_entropy,
)
from synq_fast.ops.quantize_codes import quantize_codes as quantize_codes
from synq_fast.ops.quantized_attention import quantized_attention as quantized_attention
from synq_fast.ops.random_mix import random_mix as random_mix
from synq_fast.ops.relu_fake_quantize import relu_fake_quantize as relu_fake_quantize
from synq_fast.ops.search_range import search_range as search_range
from synq_fast.ops.silu_fake_quantize import silu_fake_quantize as silu_fake_quantize
from synq_fast.ops.soft_round import soft_round as soft_round
from synq_fast.ops.softmax_fake_quantize import softmax_fake_quantize as softmax_fake_quantize
from synq_fast.ops.structural_similarity_loss import (
    structural_similarity_loss as structural_similarity_loss,
)
from synq_fast.ops.total_variation import total_variation as total_variation
from synq_fast.ops.unpack_codes import unpack_codes as unpack_codes
from synq_fast.ops.update_range import read_range as read_range
from synq_fast.ops.update_range import update_range as update_range

if not TYPE_CHECKING:
    __all__ = sorted(name for name, value in globals().items() if callable(value))
