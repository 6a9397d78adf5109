"""The patch similarity entropy on emulated CUDA kernels."""

import ctypes
import math
from typing import Any

import torch

from tests.emulation.launching import (
    DOUBLE,
    DTYPES,
    INT,
    LONG,
    POINTER,
    Launcher,
    differentiable,
    fields,
)


class Params(ctypes.Structure):
    """PatchSimilarityParams of csrc/patch_similarity_entropy.h."""

    _fields_ = fields(
        (POINTER, "tokens unit inverse similarity extrema range sums entropy slope gradient"),
        (LONG, "batch count channels points similarities"),
        (DOUBLE, "bandwidth eps"),
        (INT, "dtype"),
    )


class Similarity:
    """The op by its name."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def evaluate(
        self, tokens: torch.Tensor, points: int, bandwidth: float, eps: float, with_gradient: bool
    ) -> tuple[torch.Tensor, Any]:
        """Entropies, and the gradient of their sum."""
        batch, count, channels = tokens.shape
        numbers = {
            "batch": batch, "count": count, "channels": channels, "points": points,
            "similarities": count * count, "bandwidth": bandwidth, "eps": eps,
            "dtype": DTYPES.index(tokens.dtype),
        }  # fmt: skip

        def measured(name: str) -> int:
            measure = getattr(self.launch.library, name)
            measure.restype = ctypes.c_int64
            return measure(ctypes.byref(Params(**numbers)))

        splits = measured("splits")
        shapes = {
            "unit": (batch, count, channels),
            "inverse": (batch, count),
            "similarity": (batch, count, count),
            "extrema": (2, batch * measured("tiles")),
            "range": (2 + points,),
            "sums": (batch, splits, points),
            "entropy": (batch,),
            "slope": (batch, points),
            "gradient": (batch, count, channels),
        }
        # A guard behind each buffer shows what is written beyond it.
        guarded = {
            name: torch.full(
                (math.prod(shape) + 4,),
                math.nan,
                dtype=torch.float64 if name == "sums" else torch.float32,
            )
            for name, shape in shapes.items()
        }
        buffers = {name: value[:-4].view(shapes[name]) for name, value in guarded.items()}
        of_training = {name: buffers.pop(name) for name in ("slope", "gradient")}
        if with_gradient:
            buffers.update(of_training)
        buffers["tokens"] = self.launch.input(tokens.detach())

        def call(name: str) -> None:
            self.launch(name, Params, **numbers, **buffers)
            for buffer, value in guarded.items():
                assert value[-4:].isnan().all(), f"{name} wrote beyond {buffer}"

        call("entropy")
        if not with_gradient:
            assert all(value.isnan().all() for value in of_training.values())
            return buffers["entropy"], None
        call("gradient")
        return buffers["entropy"], buffers["gradient"]

    def patch_similarity_entropy(
        self, tokens: Any, *, points: int = 10, bandwidth: float = 0.01, eps: float = 1e-4
    ) -> Any:
        def forward(tokens: torch.Tensor) -> Any:
            if tokens.shape[0] == 0:
                return torch.empty(0), torch.empty(tokens.shape)
            entropy, gradient = self.evaluate(tokens, points, bandwidth, eps, True)
            alone, _ = self.evaluate(tokens, points, bandwidth, eps, False)
            assert torch.equal(alone.nan_to_num(), entropy.nan_to_num())
            return entropy.clone(), gradient

        def backward(gradient: torch.Tensor, g: torch.Tensor) -> Any:
            scaled = (gradient * g[:, None, None]).to(tokens.dtype)
            return (torch.empty_like(tokens.detach()).copy_(scaled),)

        return differentiable(forward, backward, tokens)
