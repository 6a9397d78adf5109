"""Networks in the form that training runs: evaluation BatchNorms folded away or fused."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from synq_fast import ops
from synq_fast.graph import called_module, shape_of
from synq_fast.graph.nodes import copied, relu_bound
from synq_fast.graph.structure import is_addition
from synq_fast.quant.activations import ActivationQuantizer
from synq_fast.quant.held import Held
from synq_fast.quant.layers import QuantizedConv2d
from synq_fast.quant.learned_fusion import fuse_learned
from synq_fast.quant.stem import FrozenStem


def energy_name(node: str) -> str:
    """The name of the node that gives the channel energies of another node's value."""
    return f"energy_{node}"


def folded(
    teacher: fx.GraphModule, keep: Collection[str] = (), energies_of: Sequence[str] = ()
) -> fx.GraphModule:
    """A frozen network with its BatchNorms folded into the convolutions before them.

    The node of a folded pair has the BatchNorm's name; its weights are copies. ReLUs work in
    place where nobody else reads what they overwrite.

    Args:
        teacher: traced model in evaluation mode; stays as it is.
        keep: names of nodes whose values are read elsewhere, so that they must stay.
        energies_of: names of nodes (B, C, H, W); each gets an ``energy_name`` node (B, C).
    """
    result = copied(teacher)
    for node in list(result.graph.nodes):
        norm = called_module(result, node)
        if not _is_frozen_norm(norm):
            continue
        (source,) = node.all_input_nodes
        convolution = called_module(result, source)
        if type(convolution) is nn.Conv2d and _only_reader(source, keep):
            name = f"folded_{node.name}"
            result.add_submodule(name, fuse_conv_bn_eval(convolution, norm))
            node.target, node.args, node.kwargs = name, source.args, source.kwargs
            result.graph.erase_node(source)
    _add_energies(result, energies_of, {})
    _overwrite_before_relu(result, keep)
    return _compiled(result, teacher)


def simplified(teacher: fx.GraphModule, keep: Collection[str] = ()) -> fx.GraphModule:
    """A frozen network whose BatchNorms are plain affine maps, joined with a ReLU behind them.

    For networks in which the BatchNorms' inputs are read, so that they cannot be folded away. A
    strided convolution of the image gets a faster gradient on CPUs.

    Args:
        teacher: traced model in evaluation mode; stays as it is.
        keep: names of nodes whose values are read elsewhere, so that they must stay.
    """
    result = copied(teacher)
    for node in list(result.graph.nodes):
        module = called_module(result, node)
        if type(module) is nn.Conv2d and FrozenStem.replaceable(module):
            node.target = f"stem_{node.name}"
            result.add_submodule(node.target, FrozenStem(module))
        if not _is_frozen_norm(module):
            continue
        user = next(iter(node.users)) if _only_reader(node, keep) else None
        bound = relu_bound(result, user) if user is not None else None
        name = f"affine_{node.name}"
        result.add_submodule(name, AffineRelu(module, bound))
        (source,) = node.all_input_nodes
        node.target, node.args, node.kwargs = name, (source,), {}
        if user is not None and bound is not None:
            user.replace_all_uses_with(node)
            result.graph.erase_node(user)
    _overwrite_before_relu(result, keep)
    return _compiled(result, teacher)


def fused(
    student: fx.GraphModule, keep: Collection[str] = (), energies_of: Sequence[str] = ()
) -> fx.GraphModule:
    """A quantized network whose BatchNorm, residual, ReLU and quantizer are one op where they meet.

    Parameters, ranges and the modules that hold them are the student's own.

    Args:
        student: a result of ``quantized_copy`` in evaluation mode; stays as it is.
        keep: names of nodes whose values are read elsewhere, so that they must stay.
        energies_of: names of nodes (B, C, H, W); each gets an ``energy_name`` node (B, C).
    """
    result = copied(student)
    norms: Norms = {}
    _add_energies(result, energies_of, norms)
    for node in list(result.graph.nodes):
        quantizer = called_module(result, node)
        if not isinstance(quantizer, ActivationQuantizer) or quantizer.gain is not None:
            continue
        if quantizer.heads is not None:
            continue
        match = _match(result, node.all_input_nodes[0], keep)
        if match is None:
            continue
        name = f"fused_{node.name}"
        norm = _frozen(result, match.norm, norms)
        result.add_submodule(name, QuantizedActivation(norm, quantizer, match.bound))
        node.target = name
        node.args = (match.norm.all_input_nodes[0], *match.residual)
        for absorbed in match.absorbed:
            result.graph.erase_node(absorbed)
    fuse_learned(result, keep)
    return _compiled(result, student)


def joined(student: fx.GraphModule) -> fx.GraphModule:
    """A quantized network whose frozen BatchNorms are part of the convolutions before them.

    For training in which the BatchNorms do not change; the quantized weight is scaled after it is
    rounded, so codes and grids stay those of the plain convolution.

    Args:
        student: part of a result of ``quantized_copy`` in evaluation mode; stays as it is.
    """
    result = copied(student)
    for node in list(result.graph.nodes):
        norm = called_module(result, node)
        if not _is_frozen_norm(norm):
            continue
        (source,) = node.all_input_nodes
        convolution = called_module(result, source)
        if isinstance(convolution, QuantizedConv2d) and _only_reader(source, ()):
            name = f"joined_{node.name}"
            result.add_submodule(name, NormedConv(convolution, norm))
            node.target, node.args, node.kwargs = name, source.args, source.kwargs
            result.graph.erase_node(source)
    fuse_learned(result)
    return _compiled(result, student)


class NormedConv(Held, nn.Module):
    """A quantized convolution and the frozen BatchNorm behind it."""

    def __init__(self, convolution: QuantizedConv2d, norm: nn.BatchNorm2d) -> None:
        """Share the convolution's weight and what rounds it; the BatchNorm is as it is now."""
        super().__init__()
        # Hidden, so that its weight is derived here alone.
        self._convolution = (convolution,)
        factor, shift = (value.detach() for value in FrozenNorm(norm).derive())
        if convolution.bias is not None:
            shift = torch.addcmul(shift, convolution.bias.detach(), factor)
        self._factor, self._shift = factor[:, None, None, None], shift

    def derive(self) -> Tensor:
        """The quantized weight times the BatchNorm's factor."""
        (convolution,) = self._convolution
        return convolution.quantized_weight() * self._factor

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C_in, H, W)."""
        (convolution,) = self._convolution
        y: Tensor = convolution._conv_forward(x, self.value(), self._shift)
        return y


class FrozenNorm(Held, nn.Module):
    """An evaluation BatchNorm as the affine map of each channel that it is."""

    inverse: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        """Share the parameters of ``norm``; its statistics no longer change."""
        super().__init__()
        assert norm.running_var is not None
        self.norm = norm
        inverse = torch.rsqrt(norm.running_var + norm.eps)
        self.register_buffer("inverse", inverse, persistent=False)

    def derive(self) -> tuple[Tensor, Tensor]:
        """Factor and summand (C,) of each channel."""
        mean = self.norm.running_mean
        assert mean is not None
        if not self.norm.affine:
            return self.inverse, -mean * self.inverse
        weight = self.norm.weight * self.inverse
        return weight, torch.addcmul(self.norm.bias, weight, mean, value=-1.0)


Norms = dict[str, FrozenNorm]
"""By the name of the BatchNorm: whoever needs it shares what it derives."""


class ChannelEnergy(nn.Module):
    """Mean square (B, C) of each channel of ``norm(x)``, or of x itself, in one read of x."""

    def __init__(self, norm: FrozenNorm | None) -> None:
        """Take the energies behind ``norm``; None: those of the input."""
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Energies of a convolution's output (B, C, H, W), float32."""
        mean, variance = ops.channel_moments(x)
        if self.norm is None:
            return variance + mean.square()
        weight, bias = self.norm.value()
        energy: Tensor = weight.square() * variance + torch.addcmul(bias, weight, mean).square()
        return energy


class QuantizedActivation(nn.Module):
    """BatchNorm, the addition of a residual, ReLU and fake quantization in one op."""

    def __init__(self, norm: FrozenNorm, quantizer: ActivationQuantizer, bound: float) -> None:
        """Join modules; ``bound`` is where the ReLU ends, infinity or 6."""
        super().__init__()
        self.norm, self.quantizer = norm, quantizer
        self.upper = None if bound == math.inf else bound

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Quantized activation of a convolution's output (B, C, H, W), of its shape and type."""
        weight, bias = self.norm.value()
        quantizer = self.quantizer
        if quantizer.bypass:
            y: Tensor = x * weight[:, None, None] + bias[:, None, None]
            return (y if residual is None else y + residual).clamp(0, self.upper)
        return ops.affine_relu_fake_quantize(
            x,
            weight,
            bias,
            quantizer.range_min,
            quantizer.range_max,
            quantizer.bits,
            upper=self.upper,
            ste=quantizer.ste,
            residual=residual,
        )


class AffineRelu(nn.Module):
    """A frozen BatchNorm, and the ReLU behind it where there is one."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.BatchNorm2d, bound: float | None) -> None:
        """Take over ``norm`` as it is now; ``bound`` is where the ReLU ends, None: no ReLU."""
        super().__init__()
        weight, bias = (value.detach()[:, None, None] for value in FrozenNorm(norm).derive())
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W)."""
        y: Tensor = _AffineRelu.apply(x, self.weight, self.bias, self.bound)
        return y


class _AffineRelu(torch.autograd.Function):
    """Two passes forward and two backward, where BatchNorm and ReLU make four and five."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, bound: float | None) -> Tensor:
        y = torch.addcmul(bias, x, weight)
        if bound is not None:
            y = y.relu_() if bound == math.inf else y.clamp_(0.0, bound)
        ctx.save_for_backward(weight, y if bound is not None else None)
        ctx.bound = bound
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, y = ctx.saved_tensors
        if y is None:
            return grad * weight, None, None, None
        if ctx.bound == math.inf:
            grad = torch.ops.aten.threshold_backward(grad, y, 0.0)
        else:
            grad = torch.ops.aten.hardtanh_backward(grad, y, 0.0, ctx.bound)
        return grad.mul_(weight), None, None, None


@dataclass(frozen=True)
class _Match:
    norm: fx.Node
    residual: tuple[fx.Node, ...]
    bound: float
    absorbed: tuple[fx.Node, ...]
    """Nodes that the op replaces, each before those that it reads."""


def _match(module: fx.GraphModule, relu: fx.Node, keep: Collection[str]) -> _Match | None:
    """The chain that ends in a ReLU whose only reader is a quantizer."""
    bound = relu_bound(module, relu)
    if bound is None or not _only_reader(relu, keep):
        return None
    (source,) = relu.all_input_nodes
    if not _only_reader(source, keep):
        return None
    if _is_frozen_norm(called_module(module, source)):
        return _Match(source, (), bound, (relu, source))
    operands = source.all_input_nodes if is_addition(source) else []
    # The fused op takes a residual of its own shape: one that is broadcast stays an addition.
    shapes = {shape_of(node) for node in (source, *operands)}
    if len(operands) == 2 and len(shapes) == 1 and None not in shapes:
        for norm, residual in (operands, operands[::-1]):
            if _only_reader(norm, keep) and _is_frozen_norm(called_module(module, norm)):
                return _Match(norm, (residual,), bound, (relu, source, norm))
    return None


def _frozen(module: fx.GraphModule, node: fx.Node, norms: Norms) -> FrozenNorm:
    norm = called_module(module, node)
    assert isinstance(norm, nn.BatchNorm2d)
    return norms.setdefault(str(node.target), FrozenNorm(norm))


def _add_energies(module: fx.GraphModule, names: Sequence[str], norms: Norms) -> None:
    nodes = {node.name: node for node in module.graph.nodes}
    for name in names:
        node, norm = nodes[name], None
        if _is_frozen_norm(called_module(module, node)):
            # Taken before the BatchNorm, whose output then need not exist.
            norm, node = _frozen(module, node, norms), node.all_input_nodes[0]
        target = energy_name(name)
        module.add_submodule(target, ChannelEnergy(norm))
        with module.graph.inserting_after(node):
            energy = module.graph.call_module(target, (node,))
        energy.name = target


def _is_frozen_norm(module: nn.Module | None) -> TypeGuard[nn.BatchNorm2d]:
    return type(module) is nn.BatchNorm2d and module.running_mean is not None


def _only_reader(node: fx.Node, keep: Collection[str]) -> bool:
    """Whether a node's value is read once and may vanish."""
    return len(node.users) == 1 and node.name not in keep


def _is_fresh(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node makes a tensor of its own, which its backward does not read."""
    layer = called_module(module, node)
    return is_addition(node) or type(layer) in (nn.Conv2d, QuantizedConv2d)


def _overwrite_before_relu(module: fx.GraphModule, keep: Collection[str]) -> None:
    """Let ReLUs work in place on results that nobody else reads."""
    for node in module.graph.nodes:
        bound = relu_bound(module, node)
        source = node.all_input_nodes[0] if bound is not None else None
        if source is not None and _only_reader(source, keep) and _is_fresh(module, source):
            in_place = functional.relu if bound == math.inf else functional.relu6
            node.op, node.target = "call_function", in_place
            node.args, node.kwargs = (source,), {"inplace": True}


def _compiled(result: fx.GraphModule, original: fx.GraphModule) -> fx.GraphModule:
    result.graph.lint()
    result.recompile()
    result.train(original.training)
    return result
