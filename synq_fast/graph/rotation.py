"""A transformer whose residual stream is rotated: the same function, without outlying channels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from synq_fast.errors import ModelError
from synq_fast.graph.nodes import (
    attribute,
    called_module,
    called_name,
    copied,
    own_modules,
    shape_of,
)
from synq_fast.graph.patches import is_layer_norm
from synq_fast.graph.structure import is_addition

_MOVES = frozenset({"flatten", "transpose", "permute", "reshape", "view", "contiguous", "expand"})
_SELECTS = frozenset({"getitem", "select", "mean", "squeeze"})
_IDLE = (nn.Identity, nn.Dropout)
# Of order 12, by Paley's construction, which no power of two gives.
_TWELVE = (1, 3, 4, 5, 9)


def rotated(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a traced vision transformer in a rotated basis of its residual stream.

    What is written to the stream loses its mean over the channels and is rotated; LayerNorms become
    RMSNorms without parameters, whose factors, summands and rotation back are part of the layers
    that read them. The outputs are those of the network up to rounding (GLF-Q, 2026; QuaRot, arXiv
    2404.00456, for language models). Quantizers then see channels of like size.

    Args:
        graph_module: of ViT's form: one residual stream of convolutions', linear layers' and
            parameters' values, which LayerNorms read for linear layers alone.

    Raises:
        ModelError: the network has another form; names where it parts.
    """
    result = own_modules(copied(graph_module))
    stream = _Stream(result)
    width = stream.width
    turn = rotation(width)
    basis = turn - turn.mean(0)  # centred, then rotated
    for node in stream.writers:
        _write(result, node, basis)
    for norm, readers in stream.norms.items():
        _read(result, norm, readers, turn)
    result.graph.eliminate_dead_code()
    result.graph.lint()
    result.recompile()
    result.delete_all_unused_submodules()
    result.train(graph_module.training)
    result.meta["rotated"] = True
    return result


def is_rotated(graph_module: fx.GraphModule) -> bool:
    """Whether a network is a result of ``rotated``."""
    return bool(graph_module.meta.get("rotated"))


def rotation(width: int) -> Tensor:
    """An orthogonal matrix (C, C) float64 of equal magnitudes where there is one of that size.

    Hadamard's with random signs, the same every time, for 2^j and 12 * 2^j; else a random one.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    order = next((n for n in (1, 12) if width % n == 0 and math.log2(width // n) % 1 == 0), None)
    if order is None:
        normal = torch.randn(width, width, generator=generator, dtype=torch.float64)
        orthogonal: Tensor = torch.linalg.qr(normal).Q
        return orthogonal
    matrix = torch.ones(1, 1, dtype=torch.float64) if order == 1 else _paley()
    while len(matrix) < width:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    signs = torch.randint(2, (width, 1), generator=generator).double() * 2 - 1
    return signs * matrix / math.sqrt(width)


def _paley() -> Tensor:
    squares = torch.full((11,), -1.0, dtype=torch.float64)
    squares[list(_TWELVE)] = 1
    squares[0] = 0
    places = (torch.arange(11)[:, None] - torch.arange(11)) % 11
    skew = torch.zeros(12, 12, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = squares[places]
    return torch.eye(12, dtype=torch.float64) + skew


@dataclass
class _Stream:
    """What writes to the residual stream, and the norms that read it, each with its readers."""

    module: fx.GraphModule
    writers: list[fx.Node] = field(default_factory=list)
    norms: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    width: int = 0

    def __post_init__(self) -> None:
        norms = [n for n in self.module.graph.nodes if is_layer_norm(self.module, n)]
        if not norms:
            raise _other_form("it has no LayerNorm")
        self.width = _channels(norms[0])
        inside: set[fx.Node] = set()
        waiting = [norm.all_input_nodes[0] for norm in norms]
        while waiting:
            node = waiting.pop()
            if node in inside:
                continue
            inside.add(node)
            behind = self._behind(node)
            if behind is None:
                self.writers.append(node)
            else:
                waiting.extend(behind)
        for node in inside:
            for user in node.users:
                if user in norms and _channels(user) == self.width:
                    self.norms[user] = []
                elif user not in inside and not _is_shape(user):
                    raise _other_form(f"{user.name} reads the residual stream, and is no LayerNorm")
        for norm in self.norms:
            self.norms[norm] = list(self._readers(norm))

    def _behind(self, node: fx.Node) -> list[fx.Node] | None:
        """What a value of the stream is made of; None where it is written."""
        called, name = called_module(self.module, node), called_name(node)
        operands = [n for n in node.all_input_nodes if shape_of(n) is not None]
        if isinstance(called, nn.Linear | nn.Conv2d):
            return None
        if node.op == "get_attr":
            value = attribute(self.module, str(node.target))
            if isinstance(value, Tensor) and value.shape[-1:] == (self.width,):
                return None
        if is_addition(node) or name in ("cat", "concat"):
            return operands
        if name in _MOVES or isinstance(called, _IDLE):
            return operands[:1]
        raise _other_form(f"{node.name} is part of the residual stream")

    def _readers(self, norm: fx.Node) -> Iterator[fx.Node]:
        """The linear layers behind a norm."""
        waiting = list(norm.users)
        while waiting:
            node = waiting.pop()
            called = called_module(self.module, node)
            if isinstance(called, nn.Linear) and called.in_features == self.width:
                yield node
            elif called_name(node) in _MOVES | _SELECTS or isinstance(called, _IDLE):
                shape = shape_of(node)
                if shape is None or shape[-1] != self.width:
                    raise _other_form(f"{node.name} reads {norm.name}, and is no linear layer")
                waiting.extend(node.users)
            elif not _is_shape(node):
                raise _other_form(f"{node.name} reads {norm.name}, and is no linear layer")


def _write(module: fx.GraphModule, node: fx.Node, basis: Tensor) -> None:
    """Let a layer or a parameter write in another basis."""
    if node.op == "get_attr":
        value = attribute(module, str(node.target))
        owner, _, name = str(node.target).rpartition(".")
        turned = value.double() @ basis.to(value.device)
        setattr(module.get_submodule(owner), name, _parameter(turned, value))
        return
    layer = called_module(module, node)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    _check_once(module, node)
    weight, bias = layer.weight, layer.bias
    basis = basis.to(weight.device)
    turned = torch.tensordot(basis, weight.double(), dims=([0], [0]))
    _set(layer, turned, None if bias is None else bias.double() @ basis)


def _read(module: fx.GraphModule, norm: fx.Node, readers: list[fx.Node], turn: Tensor) -> None:
    """Make a LayerNorm an RMSNorm; its parameters and the rotation back go to its readers."""
    called = called_module(module, norm)
    weight: Tensor | None
    bias: Tensor | None
    if isinstance(called, nn.LayerNorm):
        weight, bias, eps = called.weight, called.bias, called.eps
    else:
        named = zip(("weight", "bias", "eps"), norm.args[2:], strict=False)
        given: dict[str, Any] = {**dict(named), **norm.kwargs}
        weight, bias = (
            None if given.get(n) is None else attribute(module, str(given[n].target))
            for n in ("weight", "bias")
        )
        eps = given.get("eps", 1e-5)
    for node in dict.fromkeys(readers):
        layer = called_module(module, node)
        assert isinstance(layer, nn.Linear)
        _check_once(module, node)
        own = layer.weight.double()
        summand = None if layer.bias is None else layer.bias.double()
        if bias is not None:
            moved = own @ bias.double()
            summand = moved if summand is None else summand + moved
        scaled = own if weight is None else own * weight.double()
        _set(layer, scaled @ turn.to(own.device), summand)
    width = len(turn)
    norm.op, norm.target = "call_function", functional.rms_norm
    norm.args, norm.kwargs = (norm.all_input_nodes[0], (width,)), {"eps": eps}


def _set(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer, which is the copy's own, other parameters."""
    layer.weight = _parameter(weight, layer.weight)
    layer.bias = None if bias is None else _parameter(bias, layer.weight)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().to(like.dtype).contiguous(), requires_grad=False)


def _check_once(module: fx.GraphModule, node: fx.Node) -> None:
    calls = [n for n in module.graph.nodes if n.op == "call_module" and n.target == node.target]
    if len(calls) > 1:
        raise _other_form(f"{node.target} is called several times")


def _other_form(what: str) -> ModelError:
    return ModelError(
        f"the residual stream cannot be rotated: {what}; "
        f'set quantization.rotate = "never" or "auto"'
    )


def _is_shape(node: fx.Node) -> bool:
    """Whether a node gives a size, not a value."""
    return shape_of(node) is None


def _channels(norm: fx.Node) -> int:
    shape = shape_of(norm)
    return 0 if shape is None else shape[-1]
