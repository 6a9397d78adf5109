"""Where activation quantizers go: by call site in the traced graph, never by module."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from functools import partial
from operator import is_not
from types import MappingProxyType
from typing import Protocol

from torch import fx, nn

from synq_fast.errors import ModelError
from synq_fast.graph import called_module, shape_of
from synq_fast.graph.attention import find_attentions, is_softmax, products, stacking
from synq_fast.graph.leaves import is_kept
from synq_fast.graph.nodes import constants, relu_bound
from synq_fast.graph.structure import is_addition
from synq_fast.quant.activations import ActivationQuantizer
from synq_fast.quant.auto_placement import only_relu
from synq_fast.quant.bits import HIGHEST, WIDTHS, Policy, Site
from synq_fast.quant.grid import AVERAGES, handed_on, operation, origins
from synq_fast.quant.integer_placement import kept_values
from synq_fast.quant.layers import WeightQuantized, is_quantizable, quantize_layers

IMAGE_BITS = 8
_GELU_LIKE = {"gelu", "GELU", "silu", "SiLU", "hardswish", "Hardswish"}
FUNCTIONS: dict[str, Callable[[fx.GraphModule, fx.Node], bool]] = {
    "softmax": is_softmax,
    "gelu": lambda student, node: operation(student, node) in _GELU_LIKE,
}
"""Functions whose values may get quantizers of their own, and how a node is known for one."""


class QuantizerFactory(Protocol):
    """Builds an activation quantizer."""

    def __call__(self, bits: int, /, *, heads: int | None) -> ActivationQuantizer:
        """Of a width, with one range or one for each head."""
        ...


def after_relu(graph_module: fx.GraphModule) -> list[fx.Node]:
    """The outputs of every ReLU and ReLU6 call (the published placement of SynQ and GDFQ)."""
    return [n for n in graph_module.graph.nodes if relu_bound(graph_module, n) is not None]


def all_inputs(graph_module: fx.GraphModule) -> list[fx.Node]:
    """Every distinct tensor that a convolution or linear layer reads, the image among them."""
    read = (
        node.all_input_nodes[0]
        for node in graph_module.graph.nodes
        if isinstance(called_module(graph_module, node), WeightQuantized)
    )
    return list(dict.fromkeys(read))


def transformer(graph_module: fx.GraphModule) -> list[fx.Node]:
    """What layers read and what attention multiplies: queries, keys, probabilities and values.

    RepQ-ViT's placement, which later work on vision transformers shares. Residual sums, logits of
    the attention, LayerNorm, softmax and GELU stay in floating point.
    """
    operands = [o for node in products(graph_module) for o in node.all_input_nodes]
    return list(dict.fromkeys([*all_inputs(graph_module), *operands]))


def transformer_outputs(graph_module: fx.GraphModule) -> list[fx.Node]:
    """The image, and what every layer, norm, GELU, product and residual sum gives but the logits.

    PSAQ-ViT's placement: the residual stream and the logits of attention are quantized, its
    probabilities are not.
    """
    fixed = constants(graph_module.graph)
    (logits,) = graph_module.graph.output_node().all_input_nodes
    made = set(products(graph_module))

    def is_quantized(node: fx.Node) -> bool:
        module = called_module(graph_module, node)
        is_sum = is_addition(node) and not any(o in fixed for o in node.all_input_nodes)
        return (
            node.op == "placeholder"
            or node in made
            or is_sum
            or isinstance(module, WeightQuantized | nn.LayerNorm)
            or operation(graph_module, node) in ("layer_norm", "gelu", "GELU")
        )

    return [n for n in graph_module.graph.nodes if n is not logits and is_quantized(n)]


def integer(graph_module: fx.GraphModule) -> list[fx.Node]:
    """All that an integer runtime keeps: what it fuses into one kernel is quantized at its end.

    Sums, averages, products, the image, and outputs of convolutions that feed them, so that a
    whole convolutional network runs in integers. In a network with attention it is ``vit``'s and
    the outputs of convolutions: runtimes keep residual stream, norms and softmax in floating point.
    """

    def is_relu(node: fx.Node) -> bool:
        return relu_bound(graph_module, node) is not None

    def convolves(node: fx.Node) -> bool:
        return isinstance(called_module(graph_module, node), nn.Conv2d)

    if find_attentions(graph_module):
        convolved = kept_values(graph_module, is_relu, convolves)
        return list(dict.fromkeys([*transformer(graph_module), *convolved]))
    return kept_values(graph_module, is_relu)


PLACEMENTS: dict[str, Callable[[fx.GraphModule], list[fx.Node]]] = {
    "after_relu": after_relu,
    "all_inputs": all_inputs,
    "vit": transformer,
    "vit_outputs": transformer_outputs,
    "integer": integer,
}
AUTO = "auto"
VIT = "vit"
INTEGER = "integer"


def symmetric_widths(scheme: str, placement: str) -> frozenset[int]:
    """The widths at which weights get symmetric grids.

    Codes ``q - z`` of up to 7 bits fit an integer runtime's int8 whatever their zero points.

    Args:
        scheme: ``auto``, ``asymmetric`` or ``symmetric``.
        placement: a name in ``PLACEMENTS``.
    """
    if scheme == "symmetric":
        return frozenset(WIDTHS)
    return frozenset({HIGHEST}) if scheme == AUTO and placement == INTEGER else frozenset()


def chosen_placement(
    placement: str, graph_module: fx.GraphModule, leaves: Collection[str] = ()
) -> str:
    """A placement by name; ``auto`` is SynQ's ``after_relu`` where ReLU is all there is.

    A network with other activation functions (SiLU, hard-swish, GELU, squeeze and excitation) gets
    ``all_inputs``: after its ReLUs alone most of what its layers read would stay in floating point.
    One with attention gets ``vit``.

    Args:
        placement: ``auto`` or a name in ``PLACEMENTS``.
        graph_module: the traced network, quantized or not.
        leaves: qualified names of submodules that stay in floating point.
    """
    if placement != AUTO:
        return placement
    if find_attentions(graph_module):
        return VIT

    def is_relu(node: fx.Node) -> bool:
        return relu_bound(graph_module, node) is not None

    return "after_relu" if only_relu(graph_module, is_relu, leaves) else "all_inputs"


def quantized_copy(
    teacher: fx.GraphModule,
    policy: Policy,
    *,
    placement: str,
    make_quantizer: QuantizerFactory,
    weight_range: str = "minmax",
    weight_scheme: str = AUTO,
    head_ranges: bool = False,
    special: Mapping[str, QuantizerFactory] = MappingProxyType({}),
    leaves: Collection[str] = (),
) -> fx.GraphModule:
    """A copy of a traced model with fake-quantized weights and activations.

    Quantizers are named after the tensor that they quantize (``quantize_<node name>``), so the
    names in a saved model say where they stand. The image, where it is quantized, keeps 8 bits.
    ``meta`` of the copy holds the ``placement`` that was chosen and the ``leaves``.

    Args:
        teacher: the traced model; stays as it is.
        policy: width of each layer's weights and of what it reads.
        placement: ``auto`` or a name in ``PLACEMENTS``.
        make_quantizer: builds an activation quantizer.
        head_ranges: under ``vit``, what attention multiplies has a range for each head.
        special: builds those of what functions give, by a name of ``FUNCTIONS``.
        weight_range: of each output channel, as ``quantize_layers`` takes it.
        weight_scheme: of their grids, as ``symmetric_widths`` takes it.
        leaves: qualified names of submodules whose weights stay in floating point.

    Raises:
        ModelError: the model has no layer to quantize, or the placement finds no call site.
        RecipeError: the policy does not fit the layers, e.g. names one that is not quantized.
    """
    student = copy.deepcopy(teacher)
    layers = [
        node
        for node in student.graph.nodes
        if is_quantizable(called_module(student, node)) and not is_kept(str(node.target), leaves)
    ]
    site_of = _sites(layers, policy)
    bits = {student.get_submodule(str(n.target)): policy.weight(site_of[n]) for n in layers}
    placement = chosen_placement(placement, student, leaves)
    if quantize_layers(bits, weight_range, symmetric_widths(weight_scheme, placement)) == 0:
        kept = " outside quantization.leaf_modules" if leaves else ""
        raise ModelError(f"the model has no convolution or linear layer to quantize{kept}")
    student.meta.update(placement=placement, leaves=tuple(sorted(leaves)))
    sites = PLACEMENTS[placement](student)
    if not sites:
        raise ModelError(
            f'placement "{placement}" finds no place for an activation quantizer in this model; '
            f"try quantization.placement = "
            f'"{next(name for name in PLACEMENTS if name != placement)}"'
        )
    readers = _readers(student, layers, sites)
    heads_of = _heads(student) if head_ranges and placement == VIT else {}
    for site in sites:
        name = f"quantize_{site.name}"
        width, read = IMAGE_BITS, readers[site]
        # What no layer multiplies costs an integer runtime the same at any width.
        is_layer_input = placement != INTEGER or read
        if site.op != "placeholder" and is_layer_input:
            width = policy.activation(name, [site_of[layer] for layer in read])
        function = _function(student, site)
        quantizer = special.get(function, make_quantizer)(width, heads=heads_of.get(site))
        if function == "softmax":
            quantizer.from_zero = True
        quantizer.holds_zero = placement == INTEGER
        student.add_submodule(name, quantizer)
        with student.graph.inserting_after(site):
            quantized = student.graph.call_module(name, (site,))
        quantized.meta = dict(site.meta)
        site.replace_all_uses_with(quantized, delete_user_cb=partial(is_not, quantized))
    student.graph.lint()
    student.recompile()
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    return student


def _function(student: fx.GraphModule, site: fx.Node) -> str:
    """The name in ``FUNCTIONS`` of what a value comes from, "" of others.

    Behind a dropout that does nothing, for example.
    """
    made = list(origins(student, site))
    for name, gives in FUNCTIONS.items():
        if all(gives(student, node) for node in made):
            return name
    return ""


def _heads(graph_module: fx.GraphModule) -> dict[fx.Node, int]:
    """How many heads the operands of products have, where they are dimension 1."""
    heads = {}
    for node in products(graph_module):
        for operand, order in zip(node.all_input_nodes, stacking(node) or (), strict=False):
            shape = shape_of(operand)
            if shape is not None and order[:2] == (0, 1):
                heads[operand] = shape[1]
    return heads


def _sites(layers: list[fx.Node], policy: Policy) -> dict[fx.Node, Site]:
    """The layers as the policy sees them."""
    ends = {str(node.target) for node in (*layers[:1], *layers[-1:])}
    policy.check([str(node.target) for node in layers])
    return {n: Site(str(n.target), str(n.target) in ends) for n in layers}


def _readers(
    student: fx.GraphModule, layers: list[fx.Node], sites: Collection[fx.Node]
) -> dict[fx.Node, list[fx.Node]]:
    """The layers that read each value, pooled or moved, and not quantized anew on the way."""

    def behind(graph_module: fx.GraphModule, node: fx.Node) -> list[fx.Node] | None:
        # An average is on no grid, and yet the quantizer before it decides what is averaged.
        averages = operation(graph_module, node) in AVERAGES
        return node.all_input_nodes[:1] if averages else handed_on(graph_module, node)

    readers: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for layer in layers:
        waiting, seen = [layer.all_input_nodes[0]], set()
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                readers[node].append(layer)
                if node not in sites:
                    waiting.extend(behind(student, node) or ())
    return readers
