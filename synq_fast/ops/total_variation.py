"""The norms of the differences of neighbouring pixels."""

import torch
from torch.overrides import has_torch_function_unary

from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import like, register
from synq_fast.ops._tensor_checks import check_dims, check_float_tensor, check_shape
from synq_fast.reference.total_variation import neighbour_differences
from synq_fast.reference.total_variation import total_variation as _plain

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]
_PER_IMAGE = {"batch": False, "image": True}


def _check(x: Tensor) -> None:
    check_float_tensor("x", x)
    check_dims("x", x, "B, C, H, W")


def _fake(x: Tensor, per_image: bool) -> Pair:
    _check(x)
    shape = x.shape[:1] if per_image else ()
    groups = x.shape[0] if per_image else 1
    value, norms = (x.new_empty(size, dtype=torch.float32) for size in (shape, (groups, 4)))
    return value, norms


def _fake_backward(grad: Tensor, x: Tensor, norms: Tensor) -> Tensor:
    _check(x)
    check_shape("norms", norms, (grad.numel(), 4), "(values, 4)")
    return torch.empty_like(x)


def _reference(x: Tensor, per_image: bool) -> Pair:
    dims = (1, 2, 3) if per_image else (0, 1, 2, 3)
    parts = [torch.linalg.vector_norm(d, dim=dims) for d in neighbour_differences(x.float())]
    norms = torch.stack(parts, -1)
    return norms.sum(-1), norms.reshape(-1, 4)


def _reference_backward(grad: Tensor, x: Tensor, norms: Tensor) -> Tensor:
    factors = torch.where(norms == 0, 0.0, grad.reshape(-1, 1) / norms)
    right, down, diagonal, other = (
        difference * factor.reshape(-1, 1, 1, 1)
        for difference, factor in zip(neighbour_differences(x.float()), factors.T, strict=True)
    )
    result = torch.zeros_like(x, dtype=torch.float32)
    result[..., 1:] += right
    result[..., :-1] -= right
    result[:, :, 1:] += down
    result[:, :, :-1] -= down
    result[:, :, 1:, 1:] += diagonal
    result[:, :, :-1, :-1] -= diagonal
    result[:, :, 1:, :-1] += other
    result[:, :, :-1, 1:] -= other
    return like(result.to(x.dtype), x)


# `norms`, (values, 4): of the differences to the right, down, and along both diagonals.
register(
    "total_variation_backward",
    "(Tensor grad, Tensor x, Tensor norms) -> Tensor",
    fake=_fake_backward,
    reference=_reference_backward,
    once="total_variation",
)
_op = register(
    "total_variation",
    "(Tensor x, bool per_image) -> (Tensor value, Tensor norms)",
    fake=_fake,
    reference=_reference,
    gradients={"x": "total_variation_backward(grad_value, x, norms)"},
)


def total_variation(x: torch.Tensor, reduction: str = "batch") -> torch.Tensor:
    """Measures how much neighbouring pixels differ.

    The sum of four norms, of the differences of each pixel from its right, lower, lower right and
    lower left neighbour:

        sum over (i, j) in {(0, 1), (1, 0), (1, 1), (1, -1)} of
            sqrt(sum over h, w of (x[h + i, w + j] - x[h, w])^2)

    where both pixels are in the image. The gradient of a norm that is zero is zero.

    Args:
        x: Images `(B, C, H, W)`; float16, bfloat16, float32 or float64. Contiguous and
            channels_last memory is read where it lies.
        reduction: "batch": the norms are those over the whole batch, so the value grows with the
            root of B; "image": each image has its own.

    Returns:
        A 0-d tensor, or `(B,)` for "image"; float32 (float64 if `x` is) whatever the autocast
        state. Without a pixel, and without an image for "batch", it is zero. NaN propagates. The
        kernels know no second derivative.

    Raises:
        TypeError: `x` is not a floating tensor.
        ValueError: `x` has not four dimensions, or `reduction` is unknown.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Yin et al., "Dreaming to Distill" (DeepInversion), CVPR 2020, R_TV, as in its published
    code, norms over the batch; PSAQ-ViT V2 (Li et al., 2023) aims at a value of it.
    """
    if has_torch_function_unary(x):
        overriding: Tensor = overridden(total_variation, locals())
        return overriding
    per_image = _PER_IMAGE.get(reduction)
    if per_image is None:
        raise ValueError(f'reduction must be "batch" or "image", got {reduction!r}')
    op = _op.on(x)
    if op is None:
        _check(x)
        return _plain(x, reduction)
    try:
        result: Tensor = op(x, per_image)[0]
    except Exception as error:
        _op.refuse(error, x, per_image)
    return result
