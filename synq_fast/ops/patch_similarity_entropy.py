"""The entropy of the similarities between an image's patch tokens."""

import torch
from torch.overrides import has_torch_function_unary

from synq_fast import reference
from synq_fast.ops import _library as _library
from synq_fast.ops._backend import select
from synq_fast.ops._checks import DTYPES
from synq_fast.ops._overrides import overridden
from synq_fast.ops._patch_tokens import check_density, check_tokens

_default = torch.ops.synq_fast.patch_similarity_entropy.default
_triton = torch.ops.synq_fast.patch_similarity_entropy.triton
_triton_with_gradient = torch.ops.synq_fast.patch_similarity_entropy_with_gradient.triton


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
        overriding: torch.Tensor = overridden(patch_similarity_entropy, locals())
        return overriding
    check_tokens(tokens)
    check_density(points, bandwidth, eps)
    backend = select("patch_similarity_entropy", tokens.device)
    if backend == "reference" or tokens.dtype not in DTYPES:
        return reference.patch_similarity_entropy(
            tokens, points=points, bandwidth=bandwidth, eps=eps
        )
    result: torch.Tensor
    if backend != "triton":
        result = _default(tokens, points, bandwidth, eps)
    elif torch.is_grad_enabled() and tokens.requires_grad:
        result = _triton_with_gradient(tokens, points, bandwidth, eps)[0]
    else:
        result = _triton(tokens, points, bandwidth, eps)
    return result
