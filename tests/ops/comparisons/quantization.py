"""The kernels of quantization against the reference."""

import torch

from synq_fast import ops, reference
from tests.ops.backends import assert_same
from tests.ops.cases import ALL, axes, channel_ranges, layouts, special_values, ties


def compare(x: torch.Tensor, axis: int | None) -> None:
    """Runs every op, forward and backward, on one input."""
    low, high = channel_ranges(x, axis)
    zero = low.remainder(1.0) * 3
    results = []
    for module in (ops, reference):
        leaf = x.detach().clone().requires_grad_()
        y = module.fake_quantize(leaf, low, high, 5, axis=axis, ste="clip")
        y.sum().backward()
        dynamic = module.fake_quantize_dynamic(x, 4, axis=axis)
        symmetric = module.fake_quantize_dynamic(x, 4, axis=axis, symmetric=True)
        codes = module.quantize_codes(x, low, high, 9, axis=axis)
        pieces = [y.detach(), leaf.grad, *dynamic, *symmetric, *codes]
        calls = [
            lambda leaf, module=module: module.fake_quantize_learned(
                leaf, high, zero, 4, axis=axis
            ),
            lambda leaf, module=module: module.relu_fake_quantize(
                leaf, low, high, 4, axis=axis, upper=2.0, ste="clip"
            ),
        ]
        if axis == 1:
            calls.append(
                lambda leaf, module=module: module.affine_relu_fake_quantize(
                    leaf, low, high, 0.0, 2.5, 4, ste="clip"
                )
            )
            calls.append(
                lambda leaf, module=module: module.affine_relu_fake_quantize(
                    x, low, high, 0.0, 2.5, 4, residual=leaf, ste="clip"
                )
            )
        for call in calls:
            leaf = x.detach().clone().requires_grad_()
            y = call(leaf)
            y.sum().backward()
            pieces += [y.detach(), leaf.grad]
        results.append(pieces)
    for actual, expected in zip(*results, strict=True):
        assert_same(actual, expected)


def main() -> int:
    """Goes through all cases, special values and ties."""
    count = 0
    for shape, dtype in ALL:
        for x in layouts(shape, dtype).values():
            for axis in axes(x):
                compare(x, axis)
                count += 1
        compare(special_values().to(dtype), None)
        compare(special_values().to(dtype).view(2, -1), 0)
    for bits in range(2, 17):
        x, bounds = ties(bits, -1.3, 2.1), (-1.3, 2.1)
        assert_same(ops.fake_quantize(x, *bounds, bits), reference.fake_quantize(x, *bounds, bits))
    return count
