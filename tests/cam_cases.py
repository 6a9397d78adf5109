"""Inputs on which every class activation map kernel is compared with the float64 reference."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from synq_fast import reference
from tests.tolerances import assert_close

KINDS = ("grad_cam", "grad_cam_plus_plus", "layer_cam", "hires_cam")
NO_CLAMP = ("grad_cam_plus_plus", "hires_cam")
CLAMPED = ("grad_cam", "layer_cam", "cam_alignment_loss")

SHAPES = {
    ((1, 2, 1, 4), (1, 8)): "one row",
    ((2, 3, 2, 3), (2, 3)): "no resizing",
    ((2, 9, 3, 3), (9, 7)): "fewer positions than a vector, one channel beyond a group",
    ((3, 5, 4, 4), (8, 16)): "positions that fill a vector, whole vectors of pixels",
    ((1, 17, 7, 7), (30, 33)): "odd everywhere",
    ((2, 8, 6, 9), (4, 5)): "smaller than the coarse map",
    ((2, 4, 5, 1), (7, 3)): "one column",
}
LAYOUTS = ("contiguous", "channels_last", "mixed", "tokens", "transposed", "expanded")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Case(NamedTuple):
    """One input of the map ops."""

    name: str
    activations: torch.Tensor
    gradients: torch.Tensor
    score: torch.Tensor
    target: torch.Tensor
    size: tuple[int, int]
    grid: tuple[int, int] | None
    clamp: float | None = 1e-10

    def to(self, *args: Any) -> "Case":
        """Moves or converts every tensor."""
        tensors = {k: v.to(*args) for k, v in self._asdict().items() if torch.is_tensor(v)}
        return self._replace(**tensors)


def cut_tokens(x: torch.Tensor) -> torch.Tensor:
    """Returns images as tokens behind a class token that has been cut off, a view with gaps."""
    tokens = x.flatten(2).transpose(1, 2)
    return torch.cat([torch.full_like(tokens[:, :1], float("nan")), tokens], 1)[:, 1:]


def lay_out(x: torch.Tensor, layout: str, second: bool = False) -> torch.Tensor:
    """Returns the same values in a layout of LAYOUTS."""
    if layout == "channels_last" or (layout == "mixed" and second):
        return x.to(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "expanded" and second:
        return x[:, :, :1, :1].expand_as(x)
    return cut_tokens(x) if layout == "tokens" else x.contiguous()


def gradients_for(kind: str, gradients: torch.Tensor) -> torch.Tensor:
    """Returns gradients for which a map is well conditioned: Grad-CAM++ divides by their sums."""
    return gradients.abs() + 0.05 if kind == "grad_cam_plus_plus" else gradients


def cases(kind: str, dtype: torch.dtype, layouts: tuple[str, ...] = LAYOUTS) -> Iterator[Case]:
    """Yields random inputs: sizes, layouts."""
    generator = torch.Generator().manual_seed(0)
    for (shape, size), why in SHAPES.items():
        for layout in layouts:
            a = (torch.rand(shape, generator=generator) + 0.2).to(dtype)
            g = gradients_for(kind, torch.randn(shape, generator=generator) + 0.7).to(dtype)
            yield Case(
                f"{why}, {layout}",
                lay_out(a, layout),
                lay_out(g, layout, second=True),
                torch.randn(shape[0], generator=generator),
                torch.rand(shape[0], 1, *size, generator=generator),
                size,
                shape[2:] if layout == "tokens" else None,
            )


def unclamped(case: Case) -> Case:
    """Returns a case whose channels speak for and against the class in turn, and all count."""
    signs = torch.ones_like(case.gradients)
    signs[(slice(None),) * (2 if case.grid else 1) + (slice(1, None, 2),)] = -0.1
    return case._replace(gradients=case.gradients.abs() * signs, clamp=None)


def call(module: Any, kind: str, case: Case, activations: torch.Tensor) -> torch.Tensor:
    """Calls one op of the family, or the loss."""
    if kind == "cam_alignment_loss":
        second, rest = (case.gradients, case.target), ()
    else:
        second, rest = (case.gradients,), (case.size,)
    if kind == "grad_cam_plus_plus":
        second = (*second, case.score)
    options = {} if kind in NO_CLAMP else {"clamp": case.clamp}
    return getattr(module, kind)(activations, *second, *rest, grid=case.grid, **options)


def results(call_with: Callable[[torch.Tensor], torch.Tensor], case: Case) -> list[torch.Tensor]:
    """Returns the value, and its gradient in the activations for a fixed incoming gradient."""
    leaf = case.activations.detach().requires_grad_()
    value = call_with(leaf)
    incoming = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).sin().view(value.shape)
    value.backward(incoming.to(value.device, value.dtype))
    return [value.detach(), leaf.grad]


def exact(kind: str, case: Case) -> list[torch.Tensor]:
    """Returns the results of the reference in float64."""
    double = case.to(torch.float64)
    return results(lambda leaf: call(reference, kind, double, leaf), double)


def assert_gradient_close(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    """Asserts that two gradients agree in direction, in length and in their largest entries."""
    assert actual.shape == expected.shape, name
    precision = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[actual.dtype]
    mine, theirs = actual.cpu().double().flatten(), expected.double().flatten()
    if not theirs.any():
        assert not mine.any(), name
        return
    cosine = torch.nn.functional.cosine_similarity(mine, theirs, 0)
    assert cosine > 1 - precision, f"{name}: cosine {cosine}"
    bias = (mine @ theirs) / (theirs @ theirs) - 1
    assert abs(bias) < precision, f"{name}: longer by {bias}"
    error = (mine - theirs).abs().max() / theirs.abs().max()
    assert error < 2 * precision, f"{name}: error {error} of the largest entry"


def assert_results_close(actual: list[torch.Tensor], kind: str, case: Case) -> None:
    """Asserts that a value and a gradient agree with the float64 reference."""
    value, gradient = exact(kind, case)
    tolerance = "cam_loss" if kind == "cam_alignment_loss" else "cam_map"
    assert_close(actual[0].cpu(), value, tolerance)
    assert_gradient_close(actual[1], gradient, f"{kind}, {case.name}")


# Values and sizes for which interpolation is exact in float32, so that ties are ties everywhere.
TIES = {
    "two corners": ([[4, 1, 2], [1, 2, 1], [2, 1, 4]], (6, 6)),
    "a corner, an edge and the middle": ([[4, 1, 1, 1], [1, 1, 4, 1], [4, 1, 1, 2]], (12, 16)),
    "a plateau and a valley": ([[4, 4, 1, 1], [4, 4, 1, 1], [2, 3, 2, 1]], (6, 8)),
    "no resizing": ([[3, 1, 3], [1, 2, 3]], (2, 3)),
    "zeros below": ([[0, 0, 4], [0, 4, 1], [-2, -1, 0]], (6, 6)),
    "every other pixel": ([[1, 2, 1, 2], [2, 1, 2, 1]], (1, 2)),
}


def tie_case(name: str) -> Case:
    """Returns two images with ties of the extrema; weights are 1."""
    values, size = TIES[name]
    image = torch.tensor(values, dtype=torch.float32)
    activations = torch.stack([image, image.flip(0)])[:, None]
    return Case(
        name, activations, torch.ones_like(activations), torch.ones(2),
        torch.arange(2.0 * size[0] * size[1]).view(2, 1, *size) / 8, size, None,
    )  # fmt: skip
