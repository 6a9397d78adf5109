"""Grad-CAM++: weights of channels from squares and cubes of the gradients."""

from collections.abc import Iterator
from typing import Any

import torch

from synq_fast.testing.case import Sample, noise, uniform
from synq_fast.testing.cases._maps import kinds, map_case


def call(
    namespace: Any,
    activations: torch.Tensor,
    gradients: torch.Tensor,
    score: torch.Tensor,
    *,
    size: tuple[int, int],
    **options: Any,
) -> torch.Tensor:
    """Calls the op."""
    cam: torch.Tensor = namespace.grad_cam_plus_plus(activations, gradients, score, size, **options)
    return cam


def inputs() -> Iterator[Sample]:
    """Yields those of every map, and gradients whose squares and cubes are no numbers."""
    yield from kinds(score=True, clamped=False)
    score = torch.tensor([-200.0, 200.0], dtype=torch.float32, device="cpu")
    for scale in (1e-30, 1e-8, 1.0, 1e8):
        a = uniform(2, 8, 6, 7)
        a[:, 3] -= 3.0  # a negative sum
        tensors = a, (uniform(2, 8, 6, 7, seed=1) - 0.3) * scale, score
        options = {"size": (9, 8)}
        yield Sample(f"gradients of {scale}", tensors, options, every_layout=scale < 1)
    for channels in (2, 19):  # alone and in a group of channels
        a, g = torch.zeros_like(noise(2, 1, channels, 1, 20)).unbind()
        a[0, 0, 0, :2] = torch.tensor([-4.0, 2.0], device="cpu")
        a[0, 1, 0, :3] = torch.tensor([9.0, 1.0, 6.0], device="cpu")
        g[0, 0, 0, :2] = torch.tensor([1.0, 0.5], device="cpu")
        g[0, 1, 0, 4] = 1.0
        for eps in (0.0, 1e-7, 0.1):
            numbers: dict[str, Any] = {"size": (1, 20), "eps": eps}
            yield Sample("denominators of zero count as one", (a, g, score[:1]), numbers)
    a, g, score = uniform(2, 3, 4, 4), uniform(2, 3, 4, 4, seed=1), uniform(2)
    score[1] = float("nan")
    yield Sample("a score that is NaN", (a, g, score), {"size": (6, 6)}, special=True)


CASE = map_case("grad_cam_plus_plus", call, inputs, gradcheck=False)
