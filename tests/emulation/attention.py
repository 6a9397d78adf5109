"""Attention on quantized operands, on emulated CUDA kernels."""

import ctypes
from typing import Any

import torch

from synq_fast.ops.quantized_attention import _as_summands
from tests.emulation.launching import (
    DOUBLE,
    DTYPES,
    FLOAT,
    INT,
    LONG,
    POINTER,
    Launcher,
    differentiable,
    fields,
)

OPERANDS, ZERO_POINTS = 4, 3


class Rows(ctypes.Structure):
    """HeadRows of csrc/quantized_attention.h."""

    _fields_ = fields((POINTER, "data"), (LONG, "batch head row"))

    @classmethod
    def of(cls, x: torch.Tensor) -> "Rows":
        return cls(x.data_ptr(), *x.stride()[:3])


class AttentionParams(ctypes.Structure):
    """QuantizedAttentionParams of that file."""

    _fields_ = fields(
        (Rows * 3, "x"),
        (Rows, "y gradient"),
        (Rows * 3, "of_x"),
        (POINTER * OPERANDS, "scale"),
        (POINTER * ZERO_POINTS, "zero_point"),
        (POINTER * OPERANDS, "grad_scale"),
        (POINTER * ZERO_POINTS, "grad_zero_point"),
        (POINTER, "bias mask grad_bias workspace"),
        (LONG, "batch heads rows columns width masks"),
        (DOUBLE * OPERANDS, "gradient_scale"),
        (FLOAT, "alpha"),
        (INT * OPERANDS, "bits per_head"),
        (INT, "log2 dtype"),
    )


def _four(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple) else [value] * OPERANDS


def _pointers(tensors: list[torch.Tensor]) -> Any:
    return (POINTER * len(tensors))(*(x.data_ptr() for x in tensors))


class Attention:
    """The op by its name."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def quantized_attention(
        self, q: Any, k: Any, v: Any, *given: Any, alpha=1.0, bias=None, mask=None,
        gradient_scale=1.0, p_grid="uniform",
    ) -> Any:  # fmt: skip
        *grids, bits = given
        memory = [self.launch.input(x.detach().contiguous()) for x in (q, k, v)]
        scales = [grid.detach().contiguous() for grid in (*grids[0:6:2], grids[6])]
        zeros = [grid.detach().contiguous() for grid in grids[1:6:2]]
        summand = None if bias is None else bias.detach().contiguous()
        masks = None if mask is None else _as_summands(mask).contiguous()
        values = {
            "x": (Rows * 3)(*map(Rows.of, memory)), "scale": _pointers(scales),
            "zero_point": _pointers(zeros), "bias": summand, "mask": masks,
            "batch": q.shape[0], "heads": q.shape[1], "rows": q.shape[2], "columns": k.shape[2],
            "width": q.shape[3], "masks": 1 if masks is None else len(masks),
            "gradient_scale": (DOUBLE * OPERANDS)(*_four(gradient_scale)), "alpha": alpha,
            "bits": (INT * OPERANDS)(*_four(bits)),
            "per_head": (INT * OPERANDS)(*(scale.numel() > 1 for scale in scales)),
            "log2": p_grid == "log2", "dtype": DTYPES.index(q.dtype),
        }  # fmt: skip

        def forward(*_: Any) -> Any:
            y = self.launch.output(memory[0])
            if q.numel():
                self.launch("forward", AttentionParams, **values, y=Rows.of(y))
            return torch.empty_like(q.detach()).copy_(y), None

        def backward(_: Any, g: torch.Tensor) -> Any:
            gradients = [self.launch.output(x) for x in memory]
            sums = [torch.full(x.shape, float("nan")) for x in (*scales, *zeros)]
            of_bias = None if bias is None else torch.full(bias.shape, float("nan"))
            incoming = self.launch.input(g.contiguous())
            if q.numel():
                self.launch(
                    "backward", AttentionParams, **values, gradient=Rows.of(incoming),
                    of_x=(Rows * 3)(*map(Rows.of, gradients)), grad_scale=_pointers(sums[:4]),
                    grad_zero_point=_pointers(sums[4:]), grad_bias=of_bias,
                    workspace=("workspace", torch.float32),
                )  # fmt: skip
            else:
                for value in sums:
                    value.zero_()
            pairs = [value for i in range(3) for value in (sums[i], sums[4 + i])]
            laid = [
                torch.empty_like(x.detach()).copy_(y)
                for x, y in zip((q, k, v), gradients, strict=True)
            ]
            return *laid, *pairs, sums[3], of_bias

        return differentiable(forward, backward, q, k, v, *grids, bias)
