"""The random mixture on emulated CUDA kernels."""

import ctypes
from typing import Any

import torch

from tests.emulation.launching import (
    DTYPES,
    INT,
    LONG,
    POINTER,
    UNSIGNED,
    Launcher,
    arrange,
    differentiable,
    fields,
)


class Params(ctypes.Structure):
    """RandomMixParams of csrc/random_mix.h."""

    _fields_ = fields(
        (POINTER, "a b y gradient grad_a grad_b seed"),
        (LONG, "elements offset"),
        (UNSIGNED, "threshold"),
        (INT, "dtype"),
    )


def chance(keep: float, seed: Any, offset: int) -> dict[str, Any]:
    """The threshold and the offset, and the seed in memory of its own."""
    number = int(seed)
    signed = number - 2**64 if number >= 2**63 else number
    threshold = round(keep * 2**24)
    return {"threshold": threshold, "seed": torch.tensor([signed]), "offset": offset}


class Mixing:
    """The op by its name."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def random_mix(self, a: Any, b: Any, keep: float, seed: Any, *, offset: int = 0) -> Any:
        place = arrange(a, None)
        numbers = {
            **chance(keep, seed, offset), "elements": a.numel(), "dtype": DTYPES.index(a.dtype),
        }  # fmt: skip

        def forward(*_: Any) -> Any:
            y = self.launch.output(place.memory)
            if a.numel():
                other = b.detach().permute(place.order).contiguous()
                first, second = self.launch.input(place.memory), self.launch.input(other)
                self.launch("forward", Params, a=first, b=second, y=y, **numbers)
            return place.restored(y), None

        def backward(_: Any, gradient: torch.Tensor) -> Any:
            results = [self.launch.output(place.memory) for _ in range(2)]
            if a.numel():
                incoming = self.launch.input(gradient.permute(place.order).contiguous())
                wanted = dict(zip(("grad_a", "grad_b"), results, strict=True))
                self.launch("backward", Params, gradient=incoming, **wanted, **numbers)
                for name, result in wanted.items():
                    alone = self.launch.output(place.memory)
                    self.launch("backward", Params, gradient=incoming, **{name: alone}, **numbers)
                    assert torch.equal(alone.nan_to_num(), result.nan_to_num()), name
            return tuple(place.restored(y) for y in results)

        return differentiable(forward, backward, a, b)
