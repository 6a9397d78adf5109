"""Weights of linear layers, corrected for the rounding of what they read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn

from synq_fast.graph import called_module
from synq_fast.quant.activations import ActivationQuantizer, bypassing
from synq_fast.quant.grid import handed_on
from synq_fast.quant.layers import QuantizedLinear
from synq_fast.runtime.out_of_memory import memory_errors

AT_ONCE = 1 << 28
"""Bytes of products that are summed in one pass over the images."""
ROWS = 4096
"""So many rows are multiplied at a time."""


class Products:
    """Sums over rows x (C,) and what a quantizer makes of them, q (C,), for a correction.

    With a 1 appended to q where the layer has a bias, ``q^T q`` and ``q^T (x - q)`` in float64.
    """

    def __init__(self, columns: int, biased: bool, device: torch.device) -> None:
        """Start at zero."""
        own = columns + biased
        self.biased = biased
        self.squares = torch.zeros(own, own, dtype=torch.float64, device=device)
        self.errors = torch.zeros(own, columns, dtype=torch.float64, device=device)

    def add(self, rows: Tensor, quantized: Tensor) -> None:
        """Take in rows (N, C)."""
        for x, q in zip(rows.split(ROWS), quantized.split(ROWS), strict=True):
            x, q = x.double(), q.double()
            error = x - q
            if self.biased:
                q = torch.cat([q, q.new_ones(len(q), 1)], 1)
            self.squares.addmm_(q.T, q)
            self.errors.addmm_(q.T, error)

    def correction(self, weight: Tensor, share: float) -> Tensor:
        """What is added to a weight (D, C), and then to the bias: (D, C) or (D, C + 1) float64.

        With Q the quantized rows and Y what the layer gives in floating point, the D that has the
        least ``||Y - Q (W + D)^T||^2 + ridge ||D||^2`` is
        ``(Q^T Q + ridge I)^-1 Q^T (Y - Q W^T)`` (ERQ, arXiv 2407.06794).

        Args:
            weight: as it is.
            share: the ridge, as a share of the mean of the diagonal of ``Q^T Q``.
        """
        ridge = share * self.squares.diagonal().mean()
        matrix = self.squares + ridge * torch.eye(len(self.squares)).to(self.squares)
        if not ridge > 0:  # nothing but zeros was read
            return weight.new_zeros(len(weight), len(matrix), dtype=torch.float64)
        factor = torch.linalg.cholesky(matrix)
        solved = torch.cholesky_solve(self.errors, factor)
        return (solved @ weight.double().T).T


@torch.no_grad()
def ridge_corrections(
    student: fx.GraphModule, batches: Sequence[Tensor], share: float
) -> dict[str, Tensor]:
    """The correction of each quantized linear layer behind a quantizer, by the layer's name.

    What layers read is that of the float network, so that no order matters. Nothing but sums over
    rows is kept; where those of all layers do not fit, the images are shown again.

    Args:
        student: quantized network with ranges; stays as it is.
        batches: images (B, C, H, W) each.
        share: the ridge, as ``Products.correction`` takes it.

    Raises:
        OutOfMemoryError: a batch does not fit.
    """
    memory = memory_errors("the ridge correction", "lower quantization.calibration_batch_size")
    found: dict[str, Tensor] = {}
    with memory, bypassing(student):
        for group in _groups(corrected_layers(student)):
            sums = _summed(student, group, batches)
            for name, products in sums.items():
                weight = group[name][0].weight.detach()
                found[name] = products.correction(weight, share)
    return found


@torch.no_grad()
def apply_corrections(student: fx.GraphModule, corrections: dict[str, Tensor]) -> None:
    """Add corrections to weights and biases, and find the ranges of the weights again, in place."""
    for name, correction in corrections.items():
        layer = student.get_submodule(name)
        assert isinstance(layer, QuantizedLinear)
        change = correction.to(layer.weight.device)
        columns = layer.in_features
        layer.weight.copy_(layer.weight.double() + change[:, :columns])
        if layer.bias is not None:
            layer.bias.copy_(layer.bias.double() + change[:, columns])
        layer.renew_ranges()


_Layers = dict[str, tuple[QuantizedLinear, ActivationQuantizer]]


def corrected_layers(student: fx.GraphModule) -> _Layers:
    """The quantized linear layers that read what one quantizer with one range gives, by name."""
    found: _Layers = {}
    several: set[str] = set()
    for node in student.graph.nodes:
        layer = called_module(student, node)
        if not isinstance(layer, QuantizedLinear):
            continue
        name, source = str(node.target), node.all_input_nodes[0]
        quantizer = called_module(student, source)
        while not isinstance(quantizer, ActivationQuantizer):
            behind = handed_on(student, source)
            if not behind or len(behind) > 1:
                break
            source = behind[0]
            quantizer = called_module(student, source)
        if isinstance(quantizer, ActivationQuantizer) and quantizer.heads is None:
            found.setdefault(name, (layer, quantizer))
        if name not in found or found[name][1] is not quantizer:
            several.add(name)
    return {name: pair for name, pair in found.items() if name not in several}


def _groups(layers: _Layers) -> Iterator[_Layers]:
    """Layers whose sums fit into ``AT_ONCE`` bytes together, or single ones."""
    group: _Layers = {}
    size = 0
    for name, pair in layers.items():
        own = 2 * 8 * (pair[0].in_features + 1) ** 2
        if group and size + own > AT_ONCE:
            yield group
            group, size = {}, 0
        group[name] = pair
        size += own
    if group:
        yield group


def _summed(
    student: fx.GraphModule, layers: _Layers, batches: Sequence[Tensor]
) -> dict[str, Products]:
    sums = {
        name: Products(layer.in_features, layer.bias is not None, layer.weight.device)
        for name, (layer, _) in layers.items()
    }

    def watch(name: str) -> None:
        layer, quantizer = layers[name]

        def hook(_: nn.Module, args: tuple[Tensor]) -> None:
            rows = args[0].float().flatten(0, -2)
            sums[name].add(rows, quantizer.quantized(rows))

        handles.append(layer.register_forward_pre_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for name in layers:
            watch(name)
        for images in batches:
            student(images)
    finally:
        for handle in handles:
            handle.remove()
    return sums
