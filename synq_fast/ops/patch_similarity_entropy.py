"""The entropy of the similarities between an image's patch tokens."""

import torch
from torch.overrides import has_torch_function_unary

from synq_fast.ops._autograd import recording_again
from synq_fast.ops._overrides import overridden
from synq_fast.ops._registry import register
from synq_fast.ops._tensor_checks import (
    check_dims,
    check_float_tensor,
    check_integer,
    check_number,
    shape_text,
)
from synq_fast.reference.patch_similarity_entropy import patch_similarity_entropy as _plain

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]
MAXIMUM_POINTS = 256


def _check(tokens: Tensor, points: int, bandwidth: float, eps: float) -> None:
    check_float_tensor("tokens", tokens)
    check_dims("tokens", tokens, "B, N, C")
    if tokens.shape[1] == 0 or tokens.shape[2] == 0:
        raise ValueError(
            f"tokens must have at least one token with one channel, got {shape_text(tokens)}"
        )
    check_integer("points", points, 2, MAXIMUM_POINTS)
    check_number("bandwidth", bandwidth, above=0)
    check_number("eps", eps, above=0)


def _fake(tokens: Tensor, points: int, bandwidth: float, eps: float) -> Tensor:
    _check(tokens, points, bandwidth, eps)
    return tokens.new_empty(tokens.shape[:1], dtype=torch.float32)


def _fake_with_gradient(tokens: Tensor, points: int, bandwidth: float, eps: float) -> Pair:
    entropy = _fake(tokens, points, bandwidth, eps)
    return entropy, tokens.new_empty(tokens.shape, dtype=torch.float32)


def _reference(tokens: Tensor, points: int, bandwidth: float, eps: float) -> Tensor:
    return _plain(tokens.float(), points=points, bandwidth=bandwidth, eps=eps)


def _reference_with_gradient(tokens: Tensor, points: int, bandwidth: float, eps: float) -> Pair:
    with torch.enable_grad(), recording_again():
        leaf = tokens.detach().float().contiguous().requires_grad_()
        entropy = _reference(leaf, points, bandwidth, eps)
        (gradient,) = torch.autograd.grad(entropy.sum(), leaf)
    return entropy.detach(), gradient.contiguous()


# The gradient is that of the entropies' sum; images share no gradient, so each image's part is the
# gradient of its own entropy.
register(
    "patch_similarity_entropy_with_gradient",
    "(Tensor tokens, int points, float bandwidth, float eps) -> (Tensor entropy, Tensor gradient)",
    fake=_fake_with_gradient,
    reference=_reference_with_gradient,
    gradients={"tokens": "scale_images(gradient, grad_entropy, dtype_of(tokens))"},
    once="patch_similarity_entropy",
)
_op = register(
    "patch_similarity_entropy",
    "(Tensor tokens, int points, float bandwidth, float eps) -> Tensor",
    fake=_fake,
    reference=_reference,
    recorded="patch_similarity_entropy_with_gradient(tokens, points, bandwidth, eps)",
)


def patch_similarity_entropy(
    tokens: torch.Tensor, *, points: int = 10, bandwidth: float = 0.01, eps: float = 1e-4
) -> torch.Tensor:
    """Measures how varied the patches of each image look to a layer of a vision transformer.

    An image's patches differ from each other as its foreground does from its background; noise has
    patches that are all alike. With S the N x N cosine similarities of an image's tokens, each
    token's with itself among them, the density of S is estimated with Gaussian kernels at `points`
    equally spaced positions from the least to the greatest similarity of the whole batch:

        p(x) = mean over i, j of exp(-(S_ij - x)^2 / (2 bandwidth^2)) / (bandwidth sqrt(2 pi))

    and an image's entropy is the integral of `-(p + eps) ln(p + eps)` by the trapezoidal rule. The
    positions are constants to autograd. Synthesis maximises the entropy: its loss is
    `-patch_similarity_entropy(tokens).mean()` for each layer.

    Tokens are divided by `max(norm, 1e-8)`, so that a zero token has similarity zero to all. Where
    all similarities are equal, as those of a single token, the entropy and its gradient are zero.
    A NaN or an infinity makes every entropy NaN, because the images share the positions. An empty
    batch gives an empty tensor. The result can be differentiated once; the backend "reference"
    knows higher derivatives.

    Args:
        tokens: Patch tokens, `(B, N, C)`; float16, bfloat16, float32 or float64 (float64 runs on
            the reference). For a vision transformer: the output of a block's self-attention, mean
            over the heads, without the class token. Not contiguous tokens are copied.
        points: Number of positions, from 2 to 256.
        bandwidth: Standard deviation of the kernels, in units of similarity.
        eps: Added to the density inside and outside the logarithm; bounds the gradient where the
            density is zero.

    Returns:
        One entropy per image, `(B,)`, in nats; float32 (float64 for float64 tokens) whatever the
        autocast state.

    Raises:
        TypeError: `tokens` is not a floating tensor, or another argument not a number.
        ValueError: `tokens` is not `(B, N, C)` with N and C at least 1, or a number is outside its
            bounds.
        BackendUnavailableError: The backend asked for cannot run here.

    Source: Li et al., "Patch Similarity Aware Data-Free Quantization for Vision Transformers"
    (PSAQ-ViT), ECCV 2022, patch similarity metric; numbers as in its published code.
    """
    if has_torch_function_unary(tokens):
        overriding: Tensor = overridden(patch_similarity_entropy, locals())
        return overriding
    arguments = (tokens, points, bandwidth, eps)
    op = _op.on(tokens)
    if op is None or bool in (type(bandwidth), type(eps)):
        _check(*arguments)
        return _plain(tokens, points=points, bandwidth=bandwidth, eps=eps)
    try:
        result: Tensor = op(*arguments)
    except Exception as error:
        _op.refuse(error, *arguments)
    return result
