"""The low-pass filters on emulated CUDA kernels."""

import ctypes
from typing import Any

import torch

from synq_fast import reference
from tests.emulation.launching import (
    BOOL,
    DTYPES,
    INT,
    LONG,
    POINTER,
    Launcher,
    differentiable,
    fields,
)

LONGEST = 448


class Matrix(ctypes.Structure):
    """LowPassMatrixParams of csrc/low_pass.h."""

    _fields_ = fields((LONG, "n"), (POINTER, "table matrix"))


class Axis(ctypes.Structure):
    """LowPassAxis of csrc/low_pass.h."""

    _fields_ = fields((LONG, "n"), (POINTER, "matrix"))


class Params(ctypes.Structure):
    """LowPassParams of csrc/low_pass.h."""

    _fields_ = fields(
        (POINTER, "x y workspace"),
        (LONG, "images channels"),
        (Axis, "height width"),
        (BOOL, "tf32"),
        (INT, "dtype"),
    )


def table(n: int, cutoff: float) -> torch.Tensor:
    """The taps as csrc/low_pass.h wants them."""
    frequencies = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    taps = torch.fft.ifft(torch.exp(-(frequencies**2) / (2 * cutoff**2))).real
    taps = torch.cat([taps, taps])
    if n % 2:
        return (taps[: n + 1] / 2).float()
    h = n // 2
    ends = taps[: h + 1], taps[h : n + 1]
    return torch.cat([(ends[0] + ends[1]) / 4, (ends[0] - ends[1]) / 4]).float()


class Filters:
    """The op by its name; transforms filter what the kernel does not."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch
        self.workspace_size = 0  # of the last call

    def matrix(self, n: int, cutoff: float) -> torch.Tensor:
        """The matrix of one side, in memory that it fills."""
        measure = self.launch.library.low_pass_matrix_size
        measure.restype, measure.argtypes = LONG, [LONG]
        size = measure(n)
        memory = torch.full((size + 1,), float("nan"))
        self.launch("low_pass_matrix", Matrix, n=n, table=table(n, cutoff), matrix=memory)
        assert memory[:size].isfinite().all() and memory[size].isnan()
        return memory

    def filtered(self, x: torch.Tensor, cutoff: float, *, tf32: bool = False) -> torch.Tensor:
        """Filters a contiguous or channels_last tensor with a Gaussian."""
        channels_last = x.ndim == 4 and x.stride(1) == 1 and x.shape[1] > 1
        channels = x.shape[1] if channels_last else 1
        memory = self.launch.input(x.permute(0, 2, 3, 1) if channels_last else x)
        y = self.launch.output(memory)
        matrices = [self.matrix(n, cutoff) for n in x.shape[-2:]]
        axes = [Axis(n, m.data_ptr()) for n, m in zip(x.shape[-2:], matrices, strict=True)]
        self.workspace_size = self.launch(
            "low_pass", Params, x=memory, y=y, channels=channels,
            images=x.numel() // (channels * x.shape[-1] * x.shape[-2]), height=axes[0],
            width=axes[1], tf32=tf32, dtype=DTYPES.index(x.dtype),
            workspace=("low_pass_workspace", torch.float32),
        )  # fmt: skip
        return y.permute(0, 3, 1, 2) if channels_last else y

    def low_pass(self, x: Any, cutoff: float, *, kind: str = "gaussian", order: int = 2) -> Any:
        if kind != "gaussian" or max(x.shape[-2:]) > LONGEST or x.numel() == 0:
            return reference.low_pass(x, cutoff, kind=kind, order=order)
        # The filter is its own adjoint.
        return differentiable(
            lambda x: (self.filtered(x.detach(), cutoff), None),
            lambda _, g: (torch.empty_like(x.detach()).copy_(self.filtered(g, cutoff)),),
            x,
        )
