"""Ranges of what linear layers read, by the error of what they give."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, fx, nn

from synq_fast.graph import called_module
from synq_fast.graph.nodes import is_shape
from synq_fast.quant.activations import ActivationQuantizer, bypassing
from synq_fast.quant.layers import QuantizedLinear
from synq_fast.runtime.out_of_memory import memory_errors

ROWS = 1024
"""So many rows of a value are looked at."""


@torch.no_grad()
def fit_linear_inputs(student: fx.GraphModule, images: Tensor) -> int:
    """Give what linear layers alone read the range with which their products err least.

    A transformer's values have few large entries, in columns that weigh little: the range that fits
    the values themselves is several times too wide for the product, most of all behind GELU. Both
    the values and the weights are those of the float network, so that no order matters (AdaLog,
    APHQ-ViT and FIMA-Q choose ranges by outputs too).

    Args:
        student: quantized network with ranges, which are changed in place.
        images: (B, C, H, W), all at once.

    Returns:
        How many values there are.

    Raises:
        OutOfMemoryError: the images do not fit.
    """
    handles = []
    for node in student.graph.nodes:
        quantizer = called_module(student, node)
        if not isinstance(quantizer, ActivationQuantizer) or quantizer.from_zero:
            continue
        readers = [called_module(student, user) for user in node.users if not is_shape(user)]
        layers = [reader for reader in readers if isinstance(reader, QuantizedLinear)]
        if layers and len(layers) == len(readers):
            matrix = root(torch.cat([layer.weight.detach().float() for layer in layers]))
            handles.append(quantizer.register_forward_hook(_Fit(matrix)))
    memory = memory_errors(
        "the ranges of linear layers' inputs", "lower quantization.calibration_batch_size"
    )
    try:
        with memory, bypassing(student):
            student(images)
    finally:
        for handle in handles:
            handle.remove()
    return len(handles)


def best_range(
    values: Tensor, product: Callable[[Tensor], Tensor], quantizer: ActivationQuantizer
) -> tuple[Tensor, Tensor]:
    """The range with the least squared error of a product: (range_min, range_max), 0-d.

    Args:
        values: of any shape.
        product: what is made of them, a linear function.
        quantizer: what they are rounded by, and what knows the candidates.
    """
    lows, highs = quantizer.candidates(*values.aminmax())
    errors = [
        product(quantizer.on_range(values, *ends) - values).double().square().sum()
        for ends in zip(lows, highs, strict=True)
    ]
    best = torch.stack(errors).argmin()
    return lows[best], highs[best]


def root(matrix: Tensor) -> Tensor:
    """At most C rows whose products are as long as those of a matrix (..., D, C)."""
    rows, columns = matrix.shape[-2:]
    return matrix if rows <= columns else torch.linalg.qr(matrix, mode="r").R


def sampled(rows: Tensor) -> Tensor:
    """About ``ROWS`` of the rows (..., N, C), or all where they are fewer."""
    # Odd, so that it does not keep to some of the tokens.
    return rows[..., :: max(1, rows.shape[-2] // ROWS) | 1, :]


class _Fit:
    """Sees what a quantizer gets."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def __call__(self, quantizer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(quantizer, ActivationQuantizer)
        rows = sampled(args[0].float().flatten(0, -2))
        quantizer.take(*best_range(rows, partial(torch.matmul, other=self.matrix.T), quantizer))
