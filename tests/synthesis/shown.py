"""What losses of images see, at random."""

import numpy as np
import torch

from synq_fast.synthesis.losses import Attended, Seen

B, C, D = 6, 5, 7


def seen(**changes) -> Seen:
    g = torch.Generator().manual_seed(3)
    norms = tuple(torch.randn(B, c, 4, 3, generator=g) * 2 + 1 for c in (2, 3))
    values = {
        "images": torch.randn(B, 3, 5, 4, generator=g) * 3 - 1,
        "labels": torch.randint(C, (B,), generator=g),
        "logits": torch.randn(B, C, generator=g) * 3,
        "features": torch.randn(B, D, generator=g),
        "norms": norms,
        "attentions": tuple(attended(g, c) for c in (4, 3)),
        "running": [(torch.randn(c, generator=g), torch.rand(c, generator=g)) for c in (2, 3)],
        "student": torch.randn(B, C, generator=g) * 3,
    }
    return Seen(**(values | changes))


def attended(g: torch.Generator, width: int, tokens: int = 10) -> Attended:
    """Of two heads, and a class token before the patches."""
    logits = torch.randn(B, 2, tokens, tokens, generator=g)
    values = torch.randn(B, 2, tokens, width, generator=g)
    return Attended(logits, logits.softmax(-1), logits.softmax(-1) @ values)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def numpy(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy().astype(np.float64)
