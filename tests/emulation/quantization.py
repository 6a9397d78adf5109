"""The fake quantization family on emulated CUDA kernels."""

import ctypes
from typing import Any

import torch

from tests.emulation.launching import (
    BOOL,
    DOUBLE,
    DTYPES,
    FLOAT,
    INT,
    LONG,
    POINTER,
    UNSIGNED,
    Arranged,
    Launcher,
    arrange,
    differentiable,
    fields,
)
from tests.emulation.mixing import chance

SIZES = LONG, "outer channels inner"


class Params(ctypes.Structure):
    """FakeQuantizeParams of csrc/fake_quantize.h."""

    _fields_ = fields(
        SIZES,
        (POINTER, "x gradient y range_min range_max out_min out_max workspace"),
        (INT, "bits dtype"),
        (BOOL, "symmetric"),
    )


class LearnedParams(ctypes.Structure):
    """FakeQuantizeLearnedParams of csrc/fake_quantize_learned.h."""

    _fields_ = fields(
        SIZES,
        (POINTER, "x gradient y scale zero_point grad_scale grad_zero_point workspace seed"),
        (LONG, "offset"),
        (DOUBLE, "gradient_scale"),
        (UNSIGNED, "threshold"),
        (INT, "bits dtype"),
    )


class ActivationParams(ctypes.Structure):
    """ActivationFakeQuantizeParams of csrc/activation_fake_quantize.h."""

    _fields_ = (*LearnedParams._fields_, *fields((INT, "activation"), (BOOL, "minifloat")))


class ReluParams(ctypes.Structure):
    """ReluFakeQuantizeParams of csrc/relu_fake_quantize.h."""

    _fields_ = fields(
        SIZES,
        (POINTER, "x gradient residual y grad_residual weight bias range_min range_max"),
        (POINTER, "grad_weight grad_bias workspace"),
        (FLOAT, "upper"),
        (INT, "bits dtype"),
        (BOOL, "clip"),
    )


def bound(value: Any, count: int) -> torch.Tensor:
    """A range bound as the ops hand it over."""
    return torch.as_tensor(value, dtype=torch.float32).reshape(-1).expand(count).contiguous()


class Quantization:
    """The ops by their names."""

    def __init__(self, launch: Launcher) -> None:
        self.launch = launch

    def _arranged(self, x: torch.Tensor, axis: int | None, groups: int | None) -> Arranged:
        if groups is not None:
            x = x.unflatten(axis, (groups, -1))
            axis = axis % (x.ndim - 1)
        return arrange(x, axis)

    def _call(
        self, name: str, struct: Any, place: Arranged, x: torch.Tensor, **values: Any
    ) -> torch.Tensor:
        """Calls a launcher whose result lies as `x`, which is in the order of memory."""
        y = self.launch.output(x, values.pop("dtype_of_y", None))
        if "gradient" in values:
            values["gradient"] = self.launch.input(
                values["gradient"].reshape(place.restored(x).shape).permute(place.order)
            )
        if x.numel() == 0 and name != "codes":
            return y
        given = {"x": self.launch.input(x), "y": y, "dtype": DTYPES.index(x.dtype)}
        self.launch(name, struct, **given, **place.sizes, **values)
        return y

    def _static(
        self, x: Any, low: Any, high: Any, axis: int | None, groups: int | None, **values: Any
    ) -> Any:
        place = self._arranged(x, axis, groups)
        values |= {key: bound(v, place.channels) for key, v in
                   (("range_min", low), ("range_max", high))}  # fmt: skip

        def call(name: str, struct: Any = Params, **more: Any) -> torch.Tensor:
            y = self._call(name, struct, place, place.memory, **values, **more)
            return place.restored(y).reshape(x.shape) if groups else place.restored(y)

        return place, call

    def fake_quantize(
        self, x: Any, low: Any, high: Any, bits: int, *, axis=None, groups=None, ste="identity"
    ) -> Any:
        _, call = self._static(x, low, high, axis, groups, bits=bits)
        return differentiable(
            lambda x: (call("forward"), None),
            lambda _, g: (call("backward", gradient=g) if ste == "clip" else g,),
            x,
        )

    def quantize_codes(
        self, x: Any, low: Any, high: Any, bits: int, *, axis=None, groups=None
    ) -> Any:
        place, call = self._static(x, low, high, axis, groups, bits=bits)
        scale, zero = torch.full((2, place.channels), float("nan"))
        dtype = torch.int8 if bits <= 8 else torch.int16
        codes = call("codes", dtype_of_y=dtype, out_min=scale, out_max=zero)
        shape = () if axis is None else (place.channels,)
        return codes, scale.reshape(shape), zero.reshape(shape)

    def fake_quantize_dynamic(
        self, x: Any, bits: int, *, axis=None, groups=None, symmetric=False, ste="identity"
    ) -> Any:
        place = self._arranged(x, axis, groups)
        shape = () if axis is None else (place.channels,)
        low, high = torch.full((2, place.channels), float("nan"))

        def forward(x: torch.Tensor) -> Any:
            y = self._call(
                "dynamic", Params, place, place.memory, bits=bits, symmetric=symmetric,
                out_min=low, out_max=high, workspace=("dynamic_workspace", torch.float32),
            )  # fmt: skip
            y = place.restored(y)
            return (y.reshape(x.shape) if groups else y, low.reshape(shape), high.reshape(shape)), 0

        # Its own range clips nothing.
        return differentiable(forward, lambda _, g, *__: (g,), x, constants=(1, 2))

    def fake_quantize_learned(
        self, x: Any, scale: Any, zero_point: Any, bits: int, *, axis=None, gradient_scale=1.0,
        keep=1.0, seed=None, offset=0,
    ) -> Any:  # fmt: skip
        if keep == 1:
            return self._learned("learned", x, scale, zero_point, axis, gradient_scale, bits=bits)
        drops = chance(keep, seed, offset)
        name = "learned_dropped"
        return self._learned(name, x, scale, zero_point, axis, gradient_scale, bits=bits, **drops)

    def gelu_fake_quantize(self, *given: Any, **options: Any) -> Any:
        return self._activation(0, *given, **options)

    def silu_fake_quantize(self, *given: Any, **options: Any) -> Any:
        return self._activation(1, *given, **options)

    def hardswish_fake_quantize(self, *given: Any, **options: Any) -> Any:
        return self._activation(2, *given, **options)

    def _activation(
        self, activation: int, x: Any, scale: Any, zero_point: Any, bits: int, *,
        gradient_scale=1.0, grid="uniform",
    ) -> Any:  # fmt: skip
        return self._learned(
            "activation", x, scale, zero_point, None, gradient_scale, ActivationParams,
            bits=bits, activation=activation, minifloat=grid == "minifloat",
        )  # fmt: skip

    def fake_quantize_log(self, x: Any, scale: Any, bits: int, *, axis=None) -> Any:
        unread = torch.full_like(scale, float("nan"))
        return self._learned("log_grid", x, scale, unread, axis, 1.0, bits=bits)

    def fake_quantize_minifloat(
        self, x: Any, low: Any, high: Any, bits: int, *, axis=None, ste="identity"
    ) -> Any:
        _, call = self._static(x, low, high, axis, None, bits=bits)
        return differentiable(
            lambda x: (call("minifloat"), None),
            lambda _, g: (call("minifloat_backward", gradient=g) if ste == "clip" else g,),
            x,
        )

    def _learned(
        self, name: str, x: Any, scale: Any, zero_point: Any, axis: int | None, factor: float,
        struct: Any = LearnedParams, **values: Any,
    ) -> Any:  # fmt: skip
        place = arrange(x, axis)
        pair = [bound(v.detach(), place.channels) for v in (scale, zero_point)]
        values |= dict(zip(("scale", "zero_point"), pair, strict=True))

        def backward(_: Any, g: torch.Tensor) -> Any:
            sums = torch.full((2, place.channels), float("nan") if x.numel() else 0.0)
            y = self._call(
                f"{name}_backward", struct, place, place.memory, **values, gradient=g,
                gradient_scale=factor, grad_scale=sums[0], grad_zero_point=sums[1],
                workspace=("learned_workspace", torch.float64),
            )  # fmt: skip
            return place.restored(y), sums[0].view(scale.shape), sums[1].view(scale.shape)

        def forward(*_: Any) -> Any:
            y = self._call(name, struct, place, place.memory, **values)
            return place.restored(y), None

        return differentiable(forward, backward, x, scale, zero_point)

    def relu_fake_quantize(
        self, x: Any, low: Any, high: Any, bits: int, *, axis=None, upper=None, ste="identity"
    ) -> Any:
        options = {"bits": bits, "clip": ste == "clip"}
        options["upper"] = float("nan") if upper is None else upper
        _, call = self._static(x, low, high, axis, None, **options)
        return differentiable(
            lambda x: (call("relu", ReluParams), None),
            lambda _, g: (call("relu_backward", ReluParams, gradient=g),),
            x,
        )

    def affine_relu_fake_quantize(
        self, x: Any, weight: Any, bias: Any, low: Any, high: Any, bits: int,
        *, residual=None, upper=None, ste="identity",
    ) -> Any:  # fmt: skip
        place = arrange(x, 1)
        values = {
            "weight": weight.detach(), "bias": bias.detach(), "bits": bits, "clip": ste == "clip",
            "range_min": bound(low, 1), "range_max": bound(high, 1),
            "upper": float("nan") if upper is None else upper,
        }  # fmt: skip
        if residual is not None:
            summand = residual.detach().permute(place.order).contiguous()
            values["residual"] = self.launch.input(summand)

        def forward(*_: Any) -> Any:
            y = self._call("affine_relu", ReluParams, place, place.memory, **values)
            return place.restored(y), None

        def backward(_: Any, g: torch.Tensor) -> Any:
            sums = torch.full((2, place.channels), float("nan") if x.numel() else 0.0)
            wanted: dict[str, Any] = {"grad_weight": sums[0], "grad_bias": sums[1]}
            if residual is not None:
                # Its gradient may lie otherwise than the rest.
                wanted["grad_residual"] = self.launch.input(place.memory)
            y = self._call(
                "affine_relu_backward", ReluParams, place, place.memory, gradient=g, **values,
                **wanted, workspace=("affine_relu_workspace", torch.float64),
            )  # fmt: skip
            alone = self._call(
                "affine_relu_backward", ReluParams, place, place.memory, gradient=g, **values,
                workspace=("affine_relu_workspace", torch.float64),
            )  # fmt: skip
            assert torch.equal(y.nan_to_num(), alone.nan_to_num()), "sums change the gradient"
            of_residual = ()
            if residual is not None:
                like = torch.empty_like(residual)
                of_residual = (like.copy_(place.restored(wanted["grad_residual"])),)
            return place.restored(y), *sums, *of_residual

        tensors = (x, weight, bias) if residual is None else (x, weight, bias, residual)
        return differentiable(forward, backward, *tensors)
