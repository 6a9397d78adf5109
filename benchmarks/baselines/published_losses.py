"""The published objective's terms and image filter, as plain eager operations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def low_pass_mask(height: int, width: int, cutoff: float, like: Tensor) -> Tensor:
    """Centred Gaussian transfer function (H, W) with its peak at ``(H // 2, W // 2)``."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype) - height // 2
    columns = torch.arange(width, device=like.device, dtype=like.dtype) - width // 2
    return torch.exp(-(rows[:, None] ** 2 + columns[None, :] ** 2) / (2 * cutoff**2))


def low_pass_full(x: Tensor, mask: Tensor) -> Tensor:
    """Filter (B, C, H, W) through shifted full complex spectra."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1))
    filtered: Tensor = torch.fft.ifft2(torch.fft.ifftshift(mask * spectrum, dim=(-2, -1)))
    return filtered.real


def low_pass_half(x: Tensor, mask: Tensor) -> Tensor:
    """Filter (B, C, H, W) through the half spectrum of a real image; equals the full one."""
    height, width = x.shape[-2:]
    half = torch.fft.ifftshift(mask)[:, : width // 2 + 1]
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * half, s=(height, width))
    return filtered


def difficulty(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the teacher's probability of the label, (B,)."""
    chosen = functional.softmax(teacher_logits, dim=1).gather(1, labels[:, None])
    return 1 - chosen.squeeze(1)


def masked_cross_entropy(student_logits: Tensor, labels: Tensor, easy: Tensor) -> Tensor:
    """Mean cross entropy in which a hard sample counts as zero logits with label zero.

    A hard sample adds the constant ``ln(classes) / B`` to the value and nothing to the gradient.
    """
    logits = student_logits * easy[:, None].to(student_logits.dtype)
    return functional.cross_entropy(logits, labels * easy.long())


def distillation(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, alpha: float
) -> Tensor:
    """``alpha T^2`` times the batch mean of KL(teacher || student), with the published offset."""
    log_student = functional.log_softmax(student_logits / temperature, dim=1) + 1e-7
    teacher = functional.softmax(teacher_logits / temperature, dim=1)
    kl = functional.kl_div(log_student, teacher, reduction="batchmean")
    return kl * alpha * temperature * temperature


def feature_alignment(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Sum over layers of the mean squared distance of the channel attention vectors.

    A layer's attention is the spatial mean of its squared features (B, C, H, W), divided by its
    Euclidean norm over the channels.
    """

    def attention(features: Tensor) -> Tensor:
        return functional.normalize(features.pow(2).mean(dim=(2, 3)), dim=1)

    total = torch.zeros((), device=student[0].device, dtype=student[0].dtype)
    for one, other in zip(student, teacher, strict=True):
        total = total + functional.mse_loss(attention(one), attention(other))
    return total
