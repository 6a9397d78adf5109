"""Triton kernels of the fused ops, installed as `synq_fast.kernels`.

Each module holds one op's kernels and a launcher that takes and returns tensors. The launchers are
behind `torch.ops.synq_fast.<op>.triton`; `synq_fast.ops` checks the arguments. Tensors live on a
GPU, or on the CPU when TRITON_INTERPRET=1 was set before Triton was imported.
"""

try:
    import triton  # noqa: F401  (the check is the import)
except ImportError as error:
    raise ImportError(
        "synq_fast.kernels needs Triton, which is not installed; `pip install triton`, "
        "or use another backend (synq_fast.ops.available_backends() lists them)"
    ) from error

from synq_fast.kernels.affine_relu_fake_quantize import (
    affine_relu_fake_quantize,
    affine_relu_fake_quantize_backward,
)
from synq_fast.kernels.bn_statistics_loss import (
    bn_statistics_loss,
    bn_statistics_loss_backward,
    bn_statistics_losses,
    bn_statistics_losses_backward,
)
from synq_fast.kernels.cam_alignment_loss import cam_alignment_loss, cam_alignment_loss_backward
from synq_fast.kernels.channel_moments import channel_moments, channel_moments_backward
from synq_fast.kernels.distillation_loss import (
    distillation_loss,
    distillation_loss_backward,
    distillation_loss_with_gradient,
)
from synq_fast.kernels.fake_quantize import fake_quantize, fake_quantize_backward
from synq_fast.kernels.fake_quantize_dynamic import fake_quantize_dynamic
from synq_fast.kernels.fake_quantize_learned import (
    fake_quantize_learned,
    fake_quantize_learned_backward,
)
from synq_fast.kernels.grad_cam import grad_cam, grad_cam_backward
from synq_fast.kernels.low_pass import low_pass
from synq_fast.kernels.patch_similarity_entropy import (
    patch_similarity_entropy,
    patch_similarity_entropy_with_gradient,
)
from synq_fast.kernels.quantize_codes import quantize_codes
from synq_fast.kernels.relu_fake_quantize import relu_fake_quantize, relu_fake_quantize_backward
from synq_fast.kernels.search_range import search_range
from synq_fast.kernels.update_range import update_range

__all__ = [
    "affine_relu_fake_quantize",
    "affine_relu_fake_quantize_backward",
    "bn_statistics_loss",
    "bn_statistics_loss_backward",
    "bn_statistics_losses",
    "bn_statistics_losses_backward",
    "cam_alignment_loss",
    "cam_alignment_loss_backward",
    "channel_moments",
    "channel_moments_backward",
    "distillation_loss",
    "distillation_loss_backward",
    "distillation_loss_with_gradient",
    "fake_quantize",
    "fake_quantize_backward",
    "fake_quantize_dynamic",
    "fake_quantize_learned",
    "fake_quantize_learned_backward",
    "grad_cam",
    "grad_cam_backward",
    "low_pass",
    "patch_similarity_entropy",
    "patch_similarity_entropy_with_gradient",
    "quantize_codes",
    "relu_fake_quantize",
    "relu_fake_quantize_backward",
    "search_range",
    "update_range",
]
