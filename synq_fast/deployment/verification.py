"""Whether an exported file computes what the frozen network does, and in integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from synq_fast.deployment.agreement import Agreement, agreement
from synq_fast.deployment.freezing import frozen_layers
from synq_fast.deployment.frozen import FrozenQuantizer
from synq_fast.deployment.onnx_file import OUTPUT
from synq_fast.deployment.runtimes import OnnxRuntime, OpenVino, Operator
from synq_fast.graph import called_module
from synq_fast.graph.nodes import relu_bound

LEAST_AGREEMENT = 0.999
MEDIAN = 1e-5
_TIE = 1e-3
"""Of a step: so near the middle between two codes either of them is right."""
_SMALL = 0.02
_ROUNDINGS = 3.0
"""How many times as far as the fake-quantized network a runtime may be from the frozen one: both
differ from it by roundings, which some networks let grow."""
_INTEGER_KINDS = frozenset({"QLinearConv", "QGemm", "MatMulIntegerToFloat", "QLinearMatMul"})
_WEIGHTS = ("codes", "weight")


@dataclass(frozen=True)
class FloatLayer:
    """A layer with codes for weights that a runtime computes in floating point."""

    name: str
    reason: str


@dataclass(frozen=True)
class Check:
    """One comparison."""

    runtime: str
    """Name and version."""
    agreement: Agreement
    passed: bool
    integer_layers: int | None = None
    """How many layers the runtime computes in integers; None: not looked at."""
    float_layers: tuple[FloatLayer, ...] = ()
    """The others."""
    codes: Mapping[str, float] = field(default_factory=dict)
    """Of each quantizer, the share of codes that are the frozen network's."""

    def first_difference(self) -> str:
        """Where it fails first."""
        for name, share in self.codes.items():
            if share < LEAST_AGREEMENT:
                return f'first at "{name}", where {100 * (1 - share):.2f} % of the codes differ'
        return "after the last quantizer"

    def lines(self) -> list[str]:
        """What is printed of it."""
        mark = "ok" if self.passed else "FAILED"
        found = [f"{self.runtime}: {mark}; {self.agreement}"]
        if self.integer_layers is not None:
            of = self.integer_layers + len(self.float_layers)
            found.append(f"  layers in integers: {self.integer_layers} of {of}")
        found += [f"  in float: {layer.name} ({layer.reason})" for layer in self.float_layers]
        return found


@torch.no_grad()
def check_graph(
    frozen: fx.GraphModule, content: bytes, images: Tensor, given: Tensor, batch: int | None
) -> Check:
    """Whether the graph is right: every step of the file beside that of the frozen network.

    ONNX Runtime runs the file as it stands. Each step of the frozen network begins with the file's
    own values, since a value within a rounding of the middle between two codes may take either,
    and what follows from it grows from layer to layer.

    Args:
        frozen: a result of ``freeze``.
        content: the file.
        images: (B, C, H, W) for the network.
        given: the same for the file.
        batch: the number of images that the file takes; None: any.
    """
    quantizers = {
        n.name: module
        for n in frozen.graph.nodes
        if isinstance(module := called_module(frozen, n), FrozenQuantizer)
    }
    named, known = _with_outputs(content, list(quantizers))
    runtime = OnnxRuntime(named, optimized=False, batch=batch, outputs=[OUTPUT, *known])
    logits, *values = runtime.values(given)
    steps = _Steps(frozen, dict(zip(known, values, strict=True)), quantizers)
    found = agreement(steps.run(images), logits)
    codes = min(steps.same.values(), default=1.0)
    passed = found.decided >= LEAST_AGREEMENT and found.median <= MEDIAN
    return Check(
        f"{runtime.name} {runtime.version}, step by step",
        found,
        passed and codes >= LEAST_AGREEMENT,
        codes=steps.same,
    )


@torch.no_grad()
def check_runtime(
    frozen: fx.GraphModule,
    runtime: OnnxRuntime | OpenVino,
    expected: Tensor,
    given: Tensor,
    roundings: float = 0.0,
) -> Check:
    """Whether a runtime computes the same as users run it, and which layers in integers.

    Args:
        frozen: a result of ``freeze``.
        runtime: with the file.
        expected: the frozen network's logits.
        given: the images for the file.
        roundings: the median by which the fake-quantized network's logits differ from these.
    """
    found = agreement(expected, runtime(given))
    operators = runtime.operators()
    layers = frozen_layers(frozen)
    if isinstance(runtime, OnnxRuntime):
        floats = _float_layers(frozen, operators)
    else:
        floats = _float_in_openvino(frozen, operators)
    return Check(
        f"{runtime.name} {runtime.version}",
        found,
        found.decided >= LEAST_AGREEMENT and found.median <= max(_SMALL, _ROUNDINGS * roundings),
        len(layers) - len(floats),
        tuple(floats),
    )


def node_values(network: fx.GraphModule, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """The values of some nodes."""
    recorder = _Recorder(network, frozenset(names))
    recorder.run(images)
    return recorder.seen


class _Recorder(fx.Interpreter):
    def __init__(self, network: fx.GraphModule, names: frozenset[str]) -> None:
        super().__init__(network)
        self.names = names
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.name in self.names and isinstance(value, Tensor):
            self.seen[n.name] = value.clone()
        return value


class _Steps(fx.Interpreter):
    """Runs a frozen network from one given value to the next."""

    def __init__(
        self,
        network: fx.GraphModule,
        given: Mapping[str, Tensor],
        quantizers: Mapping[str, FrozenQuantizer],
    ) -> None:
        super().__init__(network)
        self.given, self.quantizers = given, quantizers
        self.same: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.name not in self.given or not isinstance(value, Tensor):
            return value
        given, scale = self.given[n.name], self.quantizers[n.name].scale
        away = (given - value).abs() / scale
        before: Tensor = self.env[n.all_input_nodes[0]] / scale
        tied = (before - before.floor() - 0.5).abs() < _TIE
        same = (away < 0.5) | (tied & (away < 1.5))
        self.same[n.name] = float(same.double().mean()) if same.numel() else 1.0
        return given


def _with_outputs(content: bytes, names: list[str]) -> tuple[bytes, list[str]]:
    """The file with the values that it has of some names among its outputs."""
    import onnx

    model = onnx.load_from_string(content)
    there = {output for node in model.graph.node for output in node.output}
    known = [name for name in names if name in there]
    for name in known:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    written: bytes = model.SerializeToString()
    return written, known


def _float_layers(frozen: fx.GraphModule, operators: Sequence[Operator]) -> list[FloatLayer]:
    readers: dict[str, list[Operator]] = {}
    for operator in operators:
        for value in operator.inputs:
            readers.setdefault(value, []).append(operator)
    found = []
    for name, layer in frozen_layers(frozen).items():
        kinds = {
            operator.kind for weight in _WEIGHTS for operator in readers.get(f"{name}.{weight}", ())
        }
        if kinds and kinds <= _INTEGER_KINDS:
            continue
        given = "its input is on no grid" if layer.input_scale is None else ""
        found.append(FloatLayer(name, given or _why_float(frozen, name)))
    return found


def _float_in_openvino(frozen: fx.GraphModule, operators: Sequence[Operator]) -> list[FloatLayer]:
    integer = {
        original
        for operator in operators
        if operator.kind.endswith(("u8", "i8"))
        for original in operator.inputs
    }
    found = []
    for name, layer in frozen_layers(frozen).items():
        if name not in integer:
            given = "its input is on no grid" if layer.input_scale is None else ""
            found.append(FloatLayer(name, given or "OpenVINO's choice"))
    return found


def _why_float(frozen: fx.GraphModule, name: str) -> str:
    """What keeps ONNX Runtime from computing a layer in integers."""
    (node,) = (n for n in frozen.graph.nodes if n.op == "call_module" and n.target == name)
    readers = list(node.users)
    while len(readers) == 1 and relu_bound(frozen, readers[0]) is not None:
        readers = list(readers[0].users)
    unquantized = [
        user.name
        for user in readers
        if not isinstance(called_module(frozen, user), FrozenQuantizer)
    ]
    if unquantized:
        return (
            f"its output goes to {', '.join(unquantized[:2])} in floating point; "
            f"quantization.placement = integer quantizes it"
        )
    return "ONNX Runtime's choice"
