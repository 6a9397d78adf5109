"""Inputs of the patch similarity entropy, each with its reason, and the bounds of its results."""

from collections.abc import Callable
from typing import Any

import torch

from synq_fast import reference
from tests.tolerances import TOLERANCES, assert_close

# Shape and options; the bandwidths other than the default let the kernels overlap.
CASES: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "one token": ((2, 1, 5), {}),
    "one channel: similarities are 1 and -1": ((2, 6, 1), {}),
    "two points, less than a vector": ((3, 7, 5), {"points": 2}),
    "a whole block of tokens": ((2, 16, 16), {"bandwidth": 0.3}),
    "one more than a block, odd": ((1, 17, 33), {"points": 31, "bandwidth": 0.05}),
    "many points": ((2, 20, 9), {"points": 256, "bandwidth": 0.1}),
    "several blocks, a large eps": ((2, 50, 40), {"eps": 0.5, "bandwidth": 0.02}),
}
LARGE: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "a Swin window": ((4, 49, 96), {}),
    "DeiT-tiny": ((3, 196, 192), {}),
    "DeiT-small with a class token, odd": ((2, 197, 384), {"bandwidth": 0.05}),
}


def make_tokens(shape: tuple[int, int, int]) -> torch.Tensor:
    """Random tokens that share a direction per image, so that similarities spread over a range."""
    return torch.randn(shape) + 0.7 * torch.randn(shape[0], 1, shape[2])


def evaluate(
    function: Callable[..., torch.Tensor], tokens: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropies, and the gradient of their sum with weights 1, 2, 3 ..."""
    leaf = tokens.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    entropy = function(leaf, **options)
    weight = torch.arange(1, len(entropy) + 1, device=entropy.device, dtype=entropy.dtype)
    (entropy * weight).sum().backward()
    assert leaf.grad is not None
    return entropy.detach(), leaf.grad


def assert_right(
    result: tuple[torch.Tensor, torch.Tensor], tokens: torch.Tensor, **options: Any
) -> None:
    """Compares entropies and gradient with the reference in float64."""
    entropy, gradient = (value.cpu() for value in result)
    expected, slope = evaluate(
        reference.patch_similarity_entropy, tokens.detach().cpu().double(), **options
    )
    assert entropy.dtype == torch.float32
    assert gradient.dtype == tokens.dtype
    assert_close(entropy, expected, "patch_entropy", factor=max(float(expected.abs().max()), 2.0))
    # Where the gradient is only rounding noise, as that of one token, noise is right.
    noise = 1e-3 * float(tokens.double().norm(dim=-1).reciprocal().max())
    rounding = torch.finfo(gradient.dtype).eps if gradient.dtype != torch.float32 else 0.0
    limit = TOLERANCES["patch_entropy_gradient"].rtol + rounding
    distance = float((gradient.double() - slope).norm())
    assert distance <= limit * float(slope.norm()) + noise, (distance, float(slope.norm()))
