"""The published fake quantizer as plain eager operations, and the student built from it.

Asymmetric uniform quantization shared by GDFQ, HAST and SynQ: weights per output channel with
their exact extremes, one static per-tensor quantizer after every ReLU, straight-through gradient.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

RELU_FUNCTIONS = {torch.relu, nn.functional.relu, nn.functional.relu6}


class AsymmetricFakeQuantize(torch.autograd.Function):
    """Quantize and dequantize between given extremes; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, range_min: Tensor, range_max: Tensor, bits: int) -> Tensor:
        """Return ``x`` rounded to ``2^bits`` levels; the range broadcasts against ``x``."""
        half = 2 ** (bits - 1)
        scale = (2**bits - 1) / torch.clamp(range_max - range_min, min=1e-8)
        zero_point = torch.round(scale * range_min) + half
        codes = torch.clamp(torch.round(scale * x - zero_point), -half, half - 1)
        quantized: Tensor = (codes + zero_point) / scale
        return quantized

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Straight through."""
        return grads[0], None, None, None


def fake_quantize(x: Tensor, range_min: Tensor, range_max: Tensor, bits: int) -> Tensor:
    """``AsymmetricFakeQuantize`` as a function."""
    # torch leaves Function.apply untyped.
    apply: Callable[..., Tensor] = AsymmetricFakeQuantize.apply
    return apply(x, range_min, range_max, bits)


class _QuantizedWeight:
    weight: Tensor
    bits: int
    held: Tensor | None = None
    hold: bool = False

    def quantized_weight(self) -> Tensor:
        if self.held is not None:
            return self.held
        rows = self.weight.detach().contiguous().view(self.weight.shape[0], -1)
        shape = (-1,) + (1,) * (self.weight.dim() - 1)
        low, high = rows.min(dim=1).values.view(shape), rows.max(dim=1).values.view(shape)
        quantized = fake_quantize(self.weight, low, high, self.bits)
        if self.hold:
            self.held = quantized
        return quantized


class QuantConv2d(_QuantizedWeight, nn.Conv2d):
    """A convolution that fake-quantizes its weight in each forward; the bias stays float."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        output: Tensor = self._conv_forward(input, self.quantized_weight(), self.bias)
        return output


class QuantLinear(_QuantizedWeight, nn.Linear):
    """A linear layer that fake-quantizes its weight in each forward; the bias stays float."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply (..., features)."""
        return nn.functional.linear(input, self.quantized_weight(), self.bias)


class QuantAct(nn.Module):
    """A static per-tensor activation quantizer with the published range tracker.

    The tracker stores the bias-corrected average and averages on from it, so the correction
    compounds: early ranges are far too wide and settle after some 175 updates.
    """

    range_min: Tensor
    range_max: Tensor

    def __init__(self, bits: int) -> None:
        """Start with an empty range that is frozen."""
        super().__init__()
        self.bits = bits
        self.beta: float | None = None
        self.updates = 0
        self.register_buffer("range_min", torch.zeros(1))
        self.register_buffer("range_max", torch.zeros(1))

    def track(self, batch_min: Tensor, batch_max: Tensor, beta: float) -> None:
        """Fold one batch's extremes into the range."""
        self.updates += 1
        correction = 1 - beta**self.updates
        for stored, seen in ((self.range_min, batch_min), (self.range_max, batch_max)):
            stored.copy_((beta * stored + (1 - beta) * seen) / correction)

    def forward(self, x: Tensor) -> Tensor:
        """Quantize ``x`` of any shape."""
        if self.beta is not None:
            self.track(x.detach().min(), x.detach().max(), self.beta)
        return fake_quantize(x, self.range_min, self.range_max, self.bits)


def trace_out_of_place(module: nn.Module) -> fx.GraphModule:
    """Trace a model; in-place additions become plain ones, so a hooked output keeps its value."""
    traced = fx.symbolic_trace(module)
    for node in traced.graph.nodes:
        if node.op == "call_function" and node.target is operator.iadd:
            node.target = operator.add
    traced.recompile()
    return traced


def _is_relu(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(traced.get_submodule(str(node.target)), nn.ReLU | nn.ReLU6)
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return node.op == "call_function" and node.target in RELU_FUNCTIONS


def build_published_student(
    teacher: nn.Module, weight_bits: int, activation_bits: int
) -> fx.GraphModule:
    """A quantized copy of a float model, in evaluation mode, with empty activation ranges.

    Args:
        teacher: a model that ``torch.fx`` can trace; it is copied and left alone.
        weight_bits: width of all convolution and linear weights, the first and last included.
        activation_bits: width of the quantizer after each call of a ReLU.

    Returns:
        A module with the teacher's parameter names. Its activation quantizers are named after the
        graph node of the ReLU; see ``activation_quantizers``.
    """
    student = trace_out_of_place(copy.deepcopy(teacher).eval())
    for node in list(student.graph.nodes):
        if _is_relu(student, node):
            name = f"quantize_{node.name}"
            student.add_submodule(name, QuantAct(activation_bits))
            with student.graph.inserting_after(node):
                quantized = student.graph.call_module(name, (node,))
            node.replace_all_uses_with(quantized, lambda user, new=quantized: user is not new)
    student.recompile()
    for layer in student.modules():
        kind = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}.get(type(layer))
        if kind is not None:
            layer.__class__ = kind
            # nn.Module's stubs take every attribute for a tensor or a module.
            layer.bits = weight_bits  # type: ignore[assignment]
    reference = next(student.parameters())
    student.to(device=reference.device, dtype=reference.dtype)
    return student.eval().requires_grad_(True)


def activation_quantizers(student: fx.GraphModule) -> dict[str, QuantAct]:
    """The activation quantizers by the name of the node they follow, in execution order."""
    order = [str(node.target) for node in student.graph.nodes if node.op == "call_module"]
    modules = {name: student.get_submodule(name) for name in order}
    return {
        name.removeprefix("quantize_"): module
        for name, module in modules.items()
        if isinstance(module, QuantAct)
    }


def set_ranges(
    student: fx.GraphModule, ranges: Mapping[str, tuple[float | Tensor, float | Tensor]]
) -> None:
    """Freeze every activation range at ``ranges[name] = (min, max)``.

    Raises:
        KeyError: the names are not exactly those of ``activation_quantizers``.
    """
    quantizers = activation_quantizers(student)
    if ranges.keys() != quantizers.keys():
        raise KeyError(
            f"ranges were given for {sorted(ranges)} but the student's quantizers are "
            f"{sorted(quantizers)}; give one (min, max) for each"
        )
    for name, (low, high) in ranges.items():
        quantizers[name].range_min.fill_(float(low))
        quantizers[name].range_max.fill_(float(high))


@contextmanager
def tracking_ranges(student: fx.GraphModule, beta: float = 0.9) -> Iterator[None]:
    """Let forwards inside the block update the ranges; ``beta=0`` keeps the last batch's alone."""
    quantizers = activation_quantizers(student).values()
    for quantizer in quantizers:
        quantizer.beta = beta
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.beta = None


@contextmanager
def held_weights(student: nn.Module, hold: bool = True) -> Iterator[None]:
    """Inside the block each weight is quantized at its first use only."""
    layers = [layer for layer in student.modules() if isinstance(layer, _QuantizedWeight)]
    for layer in layers:
        layer.hold = hold
    try:
        yield
    finally:
        for layer in layers:
            layer.hold, layer.held = False, None
