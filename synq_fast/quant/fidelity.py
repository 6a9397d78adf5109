"""What is trained is the user's network: every form of it is run beside the user's own module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from synq_fast.errors import TraceError
from synq_fast.graph import shape_of
from synq_fast.graph.structure import Structure
from synq_fast.graph.taps import Tapped
from synq_fast.quant.activations import bypassing
from synq_fast.quant.fusion import energy_name, folded, fused, simplified
from synq_fast.runtime.memory import free_memory
from synq_fast.runtime.out_of_memory import pass_on_memory_errors
from synq_fast.runtime.seeding import generator_for, normal_images

Network = TypeVar("Network", bound=nn.Module)

_IMAGES = 3
TOLERANCE = {torch.float64: (1e-5, 1e-9), torch.float32: (1e-3, 1e-5)}
"""Of the error, beside the difference that the image makes and beside the value itself. In float64
forms agree to about 1e-12, and an epsilon of 1e-3 in the place of 1e-5 shows. Float32 is for
models that cannot run in float64 or would fill the memory: folding a BatchNorm changes the
roundings of every layer."""
_SHAKE = {torch.float64: 1e-12, torch.float32: 1e-6}
_SHAKEN = 100
"""A network may amplify roundings. Images that are changed by a relative ``_SHAKE`` show by how
much; so many times the change that this makes is no difference of forms."""
_COPIES = 4
"""Of the weights at one time: the module's, the student's, a form's and the one in the making."""


@torch.no_grad()
def check_forms(
    module: nn.Module,
    graph: fx.GraphModule,
    student: fx.GraphModule,
    points: Structure,
    traced: fx.GraphModule | None = None,
) -> None:
    """Compare a traced network, and the forms that training runs, with the module on noise.

    These are the traced graph, with its BatchNorms folded away, with its BatchNorms as affine maps,
    quantized and fused (with the quantizers let through); each in float64 where the module runs
    and fits into memory in it. Costs ten forward passes of three images.

    Args:
        module: the user's module in evaluation mode; stays as it is.
        graph: what ``trace`` made of it, or a rewritten form.
        student: what ``quantized_copy`` made of the graph.
        points: the graph's tap points.
        traced: what ``trace`` made of it, where the graph is rewritten from that into what computes
            nearly the same; by default the graph.

    Raises:
        TraceError: a form computes something else; names the first node where it does.
    """
    images = _images(graph)
    own = _Own(module, images, _precision(graph, images.device))
    if own.logits is None and own.dtype == torch.float64:
        own = _Own(module, images, torch.float32)
    if own.logits is None:
        raise TraceError(
            f"the model does not run on {_IMAGES} images at once, as training needs it"
        )
    asked = graph if traced is None else traced
    reference = own.converted(asked)
    try:
        is_right = own.is_traced_as(reference)
    except RuntimeError as error:
        pass_on_memory_errors(error)
        if own.dtype == torch.float32:
            raise
        # A type that tracing wrote down, such as that of a weight, meets weights of another.
        own = _Own(module, images, torch.float32)
        reference = own.converted(asked)
        is_right = own.is_traced_as(reference)
    if not is_right:
        # A type that tracing wrote down, such as that of the images, rounds in float64 alone.
        narrow = _Own(module, images, torch.float32)
        if own.dtype == torch.float32 or not narrow.is_traced_as(narrow.converted(asked)):
            raise TraceError(_parted("The traced network", _first_in_trace(own, reference)))
    if traced is not None:
        reference = own.converted(graph)
    features = points.bodies
    keep = {*points.maps}
    # Made one after the other: each may be a copy of the whole network.
    forms: dict[str, tuple[Callable[[], fx.GraphModule], tuple[str, ...]]] = {
        "The network with folded BatchNorms": (
            lambda: folded(reference, keep | {*features}, features), features
        ),
        "The network for synthesis": (
            lambda: simplified(reference, _norm_inputs(reference, points)), ()
        ),
        "The quantized network": (lambda: own.converted(student), ()),
        "The fused quantized network": (
            lambda: fused(own.converted(student), keep, features), features
        ),
    }  # fmt: skip
    wanted = _measured(reference, own.images, features)
    shaken = _measured(reference, own.shaken, features)
    for title, (build, measured) in forms.items():
        form = build()
        found, seen = _run(form, own.images, [energy_name(name) for name in measured])
        triples = zip(wanted, (found, *seen), shaken, strict=False)
        if not all(own.agree(*triple) for triple in triples):
            raise TraceError(_parted(title, _first_difference(own, reference, form, measured)))


def _precision(graph: fx.GraphModule, device: torch.device) -> torch.dtype:
    """Float64, where the weights are not so many that their copies would fill the memory."""
    weights = 8 * sum(p.numel() for p in graph.parameters())
    return torch.float64 if _COPIES * weights < free_memory(device) else torch.float32


def _run(
    network: fx.GraphModule, images: Tensor, features: Sequence[str] = ()
) -> tuple[Tensor, tuple[Tensor, ...]]:
    with _same_chance(images.device), bypassing(network):
        view = Tapped(network, features)(images)
    return view.logits, view.features


def _parted(title: str, node: str) -> str:
    return (
        f"{title} computes something else than the model, first at {node}. Keep the part that is "
        f"traced wrongly whole with quantization.leaf_modules, rewrite its forward in plain "
        f"operations, and please report it with the model's code"
    )


def _images(graph: fx.GraphModule) -> Tensor:
    placeholder = next(node for node in graph.graph.nodes if node.op == "placeholder")
    shape = shape_of(placeholder)
    assert shape is not None
    device = next((t.device for t in (*graph.parameters(), *graph.buffers())), "cpu")
    return normal_images(_IMAGES, shape[1:], generator_for(0, "forms")).to(device)


class _Own:
    """The user's module on images, in a type of numbers."""

    def __init__(self, module: nn.Module, images: Tensor, dtype: torch.dtype) -> None:
        self.dtype = dtype
        # The graph shares the module's parameters, and so do their copies.
        self._parameters = {
            id(p): nn.Parameter(p.detach().to(dtype, copy=True), requires_grad=False)
            for p in module.parameters()
        }
        self.module, self.images = self.converted(module), images.to(dtype)
        self.shaken = self.images * (1 + _SHAKE[dtype])
        self.logits = self.outputs(self.images)

    def converted(self, network: Network) -> Network:
        """A copy in this type, which shares the parameters that the module has as well."""
        return copy.deepcopy(network, dict(self._parameters)).to(self.dtype)

    def outputs(self, images: Tensor) -> Tensor | None:
        """None where the module does not take such images."""
        try:
            with _same_chance(images.device):
                result: Tensor = self.module(images.clone())
                return result
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            pass_on_memory_errors(error)
            return None

    def is_traced_as(self, network: fx.GraphModule) -> bool:
        """Whether a converted graph gives the module's logits, for one image as well."""
        one = self.images[:1]
        pairs = (self.images, self.logits), (one, self.outputs(one))
        return all(
            expected is None or self.agree(expected, _run(network, images)[0])
            for images, expected in pairs
        )

    def agree(self, expected: Tensor, found: Tensor, shaken: Tensor | None = None) -> bool:
        """Whether two results differ by less than images do, or than roundings grow to."""
        if expected.shape != found.shape:
            return False
        expected, found = expected.double(), found.double()
        same = (expected == found) | (expected.isnan() & found.isnan())
        error = (expected - found)[~same].norm()
        finite = expected.nan_to_num(0, 0, 0)
        of_spread, of_value = TOLERANCE[self.dtype]
        spread = (finite - finite.mean(0)).norm()
        allowed = of_spread * spread + of_value * finite.norm()
        if shaken is not None:
            allowed = allowed + _SHAKEN * (shaken.double() - expected).nan_to_num(0, 0, 0).norm()
        return bool(error <= allowed)


def _measured(
    network: fx.GraphModule, images: Tensor, features: Sequence[str]
) -> tuple[Tensor, ...]:
    """The logits, and the energies of the features."""
    logits, values = _run(network, images, features)
    return logits, *(value.square().mean((2, 3)) for value in values)


@contextmanager
def _same_chance(device: torch.device) -> Iterator[None]:
    """The same random numbers for every network that draws some; the caller's stay as they are."""
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus):
        torch.default_generator.manual_seed(0)
        for gpu in gpus:
            torch.cuda.default_generators[gpu.index].manual_seed(0)
        yield


class _Recorder(fx.Interpreter):
    """Keeps the value of every node as it was before anybody overwrote it."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "get_attr":
            self.seen[n.name if n.op != "output" else "the logits"] = result.clone()
        return result


def _values(module: fx.GraphModule, images: Tensor) -> dict[str, Tensor]:
    recorder = _Recorder(module)
    with _same_chance(images.device), bypassing(module):
        recorder.run(images.clone())
    return recorder.seen


def _first_difference(
    own: _Own, base: fx.GraphModule, form: fx.GraphModule, features: Sequence[str]
) -> str:
    """The first node of a form whose value differs from that of the same name in the base."""
    expected, shaken = _values(base, own.images), _values(base, own.shaken)
    for values in (expected, shaken):
        values |= {energy_name(n): values[n].square().mean((2, 3)) for n in features}
    for name, value in _values(form, own.images).items():
        if name in expected and not own.agree(expected[name], value, shaken[name]):
            return f'"{name}"'
    return "the logits"


def _first_in_trace(own: _Own, graph: fx.GraphModule) -> str:
    """The first call of a layer whose result differs from that in the user's module."""
    seen: dict[str, list[Tensor]] = {}
    handles = [
        layer.register_forward_hook(_Remember(seen.setdefault(name, [])))
        for name, layer in own.module.named_modules()
    ]
    try:
        own.outputs(own.images)
    finally:
        for handle in handles:
            handle.remove()
    values, last = _values(graph, own.images), "the images"
    theirs: Mapping[str, nn.Module] = dict(own.module.named_modules())
    for node in graph.graph.nodes:
        calls = seen.get(str(node.target), []) if node.op == "call_module" else []
        if not calls or type(theirs[node.target]) is not type(graph.get_submodule(node.target)):
            continue
        if not own.agree(calls.pop(0), values[node.name]):
            return f'"{node.name}" ({node.target}), after {last}'
        last = f'"{node.name}"'
    return f"the logits, after {last}"


@dataclass(frozen=True)
class _Remember:
    outputs: list[Tensor]

    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor):
            self.outputs.append(output.clone())


def _norm_inputs(graph: fx.GraphModule, points: Structure) -> list[str]:
    norms = {*points.norms}
    return [n.all_input_nodes[0].name for n in graph.graph.nodes if n.name in norms]
