"""Calls of emulated CUDA launchers from Python, with autograd around them."""

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from tests.emulation.build import shifted

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
POINTER, LONG, INT, UNSIGNED, FLOAT, DOUBLE, BOOL = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int32,
    ctypes.c_uint32,
    ctypes.c_float,
    ctypes.c_double,
    ctypes.c_bool,
)


class Setting(NamedTuple):
    """How the device is and where memory lies.

    Attributes:
        multiprocessors: Of the device, which decides the grids.
        shift_x: Elements by which inputs lie off a 16-byte boundary.
        shift_y: The same for results.
    """

    multiprocessors: int = 1
    shift_x: int = 0
    shift_y: int = 0


def fields(*groups: tuple[Any, str]) -> list[tuple[str, Any]]:
    """The fields of a struct: types, each with the names that have it."""
    return [(name, kind) for kind, names in groups for name in names.split()]


class Launcher:
    """The launchers of one library; `seed` decides the order of threads and blocks."""

    def __init__(self, library: ctypes.CDLL, setting: Setting, seed: int = 0) -> None:
        self.library = library
        self.setting = setting
        library.set_seed(ctypes.c_uint64(seed))

    def input(self, x: torch.Tensor) -> torch.Tensor:
        """A copy of the elements in their order, shifted as the setting says."""
        return shifted(x, self.setting.shift_x)

    def output(self, x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Memory like that of an input, filled with what must be overwritten."""
        dtype = dtype or x.dtype
        filler = float("nan") if dtype.is_floating_point else -77
        return shifted(torch.full(x.shape, filler, dtype=dtype), self.setting.shift_y)

    def __call__(
        self,
        name: str,
        struct: type[ctypes.Structure],
        *,
        workspace: tuple[str, torch.dtype] | None = None,
        **values: Any,
    ) -> int:
        """Launches; a workspace is as large as its function says, and not an element larger.

        Returns the size of the workspace.
        """
        self.library.set_multiprocessors(self.setting.multiprocessors)
        given = {
            key: v.data_ptr() if isinstance(v, torch.Tensor) else v
            for key, v in values.items()
            if v is not None
        }
        params = struct(**given)
        size = 0
        if workspace is not None:
            measure = getattr(self.library, workspace[0])
            measure.restype = ctypes.c_int64
            size = measure(ctypes.byref(params))
            scratch = torch.full((size + 1,), float("nan"), dtype=workspace[1])
            params.workspace = scratch.data_ptr()
        assert getattr(self.library, name)(ctypes.byref(params)) == 0, name
        if workspace is not None:
            assert scratch[size].isnan(), f"{name} wrote beyond its workspace"
        return int(size)


class Arranged(NamedTuple):
    """A tensor's elements in the order of memory, around one axis."""

    memory: torch.Tensor
    order: list[int]
    outer: int
    channels: int
    inner: int

    @property
    def sizes(self) -> dict[str, int]:
        return {"outer": self.outer, "channels": self.channels, "inner": self.inner}

    def restored(self, memory: torch.Tensor) -> torch.Tensor:
        """The tensor whose memory this is."""
        return memory.permute(sorted(range(len(self.order)), key=self.order.__getitem__))


def dense(x: torch.Tensor) -> torch.Tensor:
    """The tensor if it has no gaps, else a contiguous copy, as the ops do it."""
    return x if torch.empty_like(x).stride() == x.stride() else x.contiguous()


def arrange(x: torch.Tensor, axis: int | None, order: list[int] | None = None) -> Arranged:
    """Lays the dimensions out from the widest stride to the narrowest, or as `order` says."""
    if order is None:
        # As `make_dense` does it: what gaps are removed from keeps the order of its strides.
        x = torch.empty_like(x).copy_(x.detach())
    x = x.detach()
    order = order or sorted(range(x.ndim), key=lambda dim: -x.stride(dim))
    memory = x.permute(order).contiguous()
    if axis is None:
        return Arranged(memory, order, 1, 1, memory.numel())
    place = order.index(axis % x.ndim)
    outer, inner = torch.Size(memory.shape[:place]), torch.Size(memory.shape[place + 1 :])
    return Arranged(memory, order, outer.numel(), memory.shape[place], inner.numel())


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Any, *tensors: Any) -> Any:
        ctx.set_materialize_grads(False)
        forward, ctx.backward_kernels, constants = kernels
        results, ctx.kept = forward(*tensors)
        ctx.mark_non_differentiable(*(results[i] for i in constants))
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, *ctx.backward_kernels(ctx.kept, *gradients)


def differentiable(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *tensors: Any,
    constants: tuple[int, ...] = (),
) -> Any:
    """Runs `forward(*tensors) -> (results, kept)`, some of whose results are constants.

    Gradients come from `backward(kept, *gradients)`, one for each tensor.
    """
    return _Differentiable.apply((forward, backward, constants), *tensors)
