"""Activations over rows, fused with fake quantization, on emulated CUDA kernels."""

import ctypes
from typing import Any

import torch

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
from tests.emulation.quantization import bound


class NormParams(ctypes.Structure):
    """LayerNormFakeQuantizeParams of csrc/layer_norm_fake_quantize.h."""

    _fields_ = fields(
        (POINTER, "x gradient y weight bias scale zero_point"),
        (POINTER, "grad_weight grad_bias grad_scale grad_zero_point workspace"),
        (LONG, "rows columns"),
        (DOUBLE, "gradient_scale"),
        (FLOAT, "eps"),
        (INT, "bits dtype"),
    )


class SoftmaxParams(ctypes.Structure):
    """SoftmaxFakeQuantizeParams of csrc/softmax_fake_quantize.h."""

    _fields_ = fields(
        (POINTER, "x gradient y scale grad_scale workspace"),
        (LONG, "rows columns"),
        (DOUBLE, "gradient_scale"),
        (FLOAT, "alpha"),
        (INT, "bits log2 dtype"),
    )


def laid_out(y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Contiguous memory in the layout that a result for the other tensor has."""
    return torch.empty_like(like.detach()).copy_(y.view(like.shape))


class Norms:
    """The op by its name."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def layer_norm_fake_quantize(
        self, x: Any, weight: Any, bias: Any, scale: Any, zero_point: Any, bits: int, *,
        eps=1e-6, gradient_scale=1.0,
    ) -> Any:  # fmt: skip
        columns = x.shape[-1]
        factors = weight, bias
        weight = torch.ones(columns) if weight is None else weight.detach()
        bias = torch.zeros(columns) if bias is None else bias.detach()
        memory = x.detach().contiguous()
        values = {
            "x": self.launch.input(memory), "weight": self.launch.input(weight),
            "bias": self.launch.input(bias), "scale": bound(scale.detach(), 1),
            "zero_point": bound(zero_point.detach(), 1), "rows": x.numel() // columns,
            "columns": columns, "gradient_scale": gradient_scale, "eps": eps, "bits": bits,
            "dtype": DTYPES.index(x.dtype),
        }  # fmt: skip

        def forward(*_: Any) -> Any:
            y = self.launch.output(memory)
            if x.numel():
                self.launch("forward", NormParams, **values, y=y)
            return laid_out(y, x), None

        def backward(_: Any, g: torch.Tensor) -> Any:
            y = self.launch.output(memory)
            filler = float("nan") if x.numel() else 0.0
            sums = [torch.full((n,), filler) for n in (columns, columns, 1, 1)]
            names = "grad_weight", "grad_bias", "grad_scale", "grad_zero_point"
            if x.numel():
                self.launch(
                    "backward", NormParams, **values, y=y,
                    gradient=self.launch.input(g.contiguous()),
                    workspace=("workspace", torch.float32), **dict(zip(names, sums, strict=True)),
                )  # fmt: skip
            of_factors = [
                None if given is None else total
                for given, total in zip(factors, sums[:2], strict=True)
            ]
            grids = sums[2].view(scale.shape), sums[3].view(zero_point.shape)
            return laid_out(y, x), *of_factors, *grids

        return differentiable(forward, backward, x, *factors, scale, zero_point)


class Softmaxes:
    """The op by its name."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def softmax_fake_quantize(
        self, x: Any, scale: Any, bits: int, *, alpha=1.0, gradient_scale=1.0, grid="uniform"
    ) -> Any:
        columns = x.shape[-1]
        memory = x.detach().contiguous()
        values = {
            "x": self.launch.input(memory), "scale": bound(scale.detach(), 1),
            "rows": x.numel() // columns, "columns": columns, "gradient_scale": gradient_scale,
            "alpha": alpha, "bits": bits, "log2": grid == "log2", "dtype": DTYPES.index(x.dtype),
        }  # fmt: skip

        def forward(*_: Any) -> Any:
            y = self.launch.output(memory)
            if x.numel():
                self.launch("forward", SoftmaxParams, **values, y=y)
            return laid_out(y, x), None

        def backward(_: Any, g: torch.Tensor) -> Any:
            y, total = self.launch.output(memory), torch.zeros(1)
            if x.numel():
                total.fill_(float("nan"))
                self.launch(
                    "backward", SoftmaxParams, **values, y=y,
                    gradient=self.launch.input(g.contiguous()), grad_scale=total,
                    workspace=("workspace", torch.float64),
                )  # fmt: skip
            return laid_out(y, x), total.view(scale.shape)

        return differentiable(forward, backward, x, scale)
