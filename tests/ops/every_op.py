"""One call of every public op, for tests that hold for all of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from synq_fast import ops


class Call(NamedTuple):
    """`function(ops or reference, *tensors)`; the first `differentiable` tensors get gradients."""

    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    differentiable: int = 1
    constants: tuple[torch.Tensor, ...] = ()


LABELS = torch.tensor([1, 2, 0, 3])
MAPS = ((2, 3, 4, 4),) * 2
LOW, HIGH = torch.tensor(-1.0), torch.tensor(1.5)
STATE = torch.tensor(-0.3), torch.tensor(0.4), torch.tensor(3)


def _update(n, x):
    state = [part.clone() for part in STATE]
    n.update_range(x, *state)
    return tuple(state)


CALLS = {
    "affine_relu_fake_quantize": Call(
        lambda n, x, w, b, r, low, high: n.affine_relu_fake_quantize(
            x, w, b, low, high, 4, residual=r, ste="clip"
        ),
        ((2, 3, 4, 5), (3,), (3,), (2, 3, 4, 5)),
        4,
        (LOW, HIGH),
    ),
    "bn_statistics_loss": Call(
        lambda n, x, m, v: n.bn_statistics_loss(x, m, v), ((3, 4, 5), (4,), (4,))
    ),
    "bn_statistics_losses": Call(
        lambda n, x, y, m, v: n.bn_statistics_losses([x, y], [m, m], [v, v], [0.5, 2.0]),
        ((3, 4, 5), (2, 4), (4,), (4,)),
        2,
    ),
    "cam_alignment_loss": Call(
        lambda n, a, g, t: n.cam_alignment_loss(a, g, t), (*MAPS, (2, 1, 8, 8))
    ),
    "channel_moments": Call(lambda n, x: n.channel_moments(x), ((2, 3, 4, 5),)),
    "distillation_loss": Call(
        lambda n, s, t, labels: n.distillation_loss(s, t, labels, difficulty_threshold=0.9),
        ((4, 5), (4, 5)),
        2,
        (LABELS,),
    ),
    "fake_quantize": Call(
        lambda n, x, low, high: n.fake_quantize(x, low, high, 3, ste="clip"),
        ((4, 6),),
        1,
        (LOW, HIGH),
    ),
    "fake_quantize_dynamic": Call(
        lambda n, x: n.fake_quantize_dynamic(x, 4, axis=1, symmetric=True), ((4, 6),)
    ),
    "fake_quantize_learned": Call(
        lambda n, x, s, z: n.fake_quantize_learned(x, s.abs() + 1, z, 3, gradient_scale=0.5),
        ((4, 6), (1,), (1,)),
        3,
    ),
    "grad_cam": Call(lambda n, a, g: n.grad_cam(a, g, (7, 8)), MAPS),
    "grad_cam_plus_plus": Call(
        lambda n, a, g, s: n.grad_cam_plus_plus(a, g, s, (7, 8)), (*MAPS, (2,))
    ),
    "hires_cam": Call(lambda n, a, g: n.hires_cam(a, g, (7, 8)), MAPS),
    "layer_cam": Call(lambda n, a, g: n.layer_cam(a, g, (7, 8)), MAPS),
    "low_pass": Call(lambda n, x: n.low_pass(x, 2.0), ((2, 3, 6, 7),)),
    "patch_similarity_entropy": Call(
        lambda n, x: n.patch_similarity_entropy(x, bandwidth=0.1), ((2, 5, 4),)
    ),
    "quantize_codes": Call(
        lambda n, x, low, high: n.quantize_codes(x, low, high, 3), ((4, 6),), 0, (LOW, HIGH)
    ),
    "read_range": Call(lambda n, low, high, step: n.read_range(low, high, step), (), 0, STATE),
    "relu_fake_quantize": Call(
        lambda n, x, low, high: n.relu_fake_quantize(x, low, high, 3, ste="clip", upper=1.2),
        ((4, 6),),
        1,
        (LOW, HIGH),
    ),
    "search_range": Call(lambda n, x: n.search_range(x, 3, candidates=6), ((4, 5),), 0),
    "total_variation": Call(lambda n, x: n.total_variation(x), ((2, 3, 4, 5),)),
    "update_range": Call(_update, ((4, 5),), 0),
}
NAMES = sorted(
    name
    for name in ops.__all__
    if name not in ("backend", "available_backends", "current_backend", "BackendUnavailableError")
)


def tensors_of(name: str, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Returns the tensors of a call, the same every time."""
    generator = torch.Generator("cpu").manual_seed(1)
    call = CALLS[name]
    floats = [
        torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype)
        for shape in call.shapes
    ]
    return [*floats, *call.constants]


def results_of(name: str, namespace: Any, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Calls the op and returns what it gives as a list."""
    results = CALLS[name].function(namespace, *tensors)
    return list(results) if isinstance(results, tuple) else [results]
