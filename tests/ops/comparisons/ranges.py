"""The kernels of the range ops against their oracles."""

import torch

from synq_fast import ops, reference
from tests.ops.backends import assert_same
from tests.ops.cases import ALL, layouts, special_values
from tests.range_cases import DTYPES, SIZES, assert_best, distribution, search_cases


def compare_update(x: torch.Tensor) -> None:
    """Follows three batches with the op and with the reference."""
    states = []
    for module in (ops, reference):
        state = torch.zeros(()), torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for factor in (1, -3, 0.3):
            module.update_range(x * factor, *state, 0.7)
        states.append(state)
    for actual, expected in zip(*states, strict=True):
        assert_same(actual, expected)


def main() -> int:
    """Goes through all cases of both ops."""
    count = 0
    for shape, dtype in ALL:
        for x in layouts(shape, dtype).values():
            if x.numel() > 0:
                compare_update(x)
                count += 1
        compare_update(special_values().to(dtype))
        compare_update(special_values().to(dtype)[2:3])
    for _, x, bits in search_cases():
        assert_best(x, ops.search_range(x, bits), bits)
        count += 1
    for dtype in DTYPES:
        for size in SIZES:
            x = distribution("cubed", size).to(dtype)
            assert_best(x, ops.search_range(x, 4), 4)
            count += 1
    return count
