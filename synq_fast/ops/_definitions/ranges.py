"""The running range and the range search; ranges are constants to autograd."""

import torch

from synq_fast import reference
from synq_fast.ops._checks import check_input
from synq_fast.ops._op import Op
from synq_fast.ops._range_checks import MAX_KERNEL_NORM, check_range_state, check_search

Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]


def _fake_update(
    x: Tensor, state_min: Tensor, state_max: Tensor, step: Tensor, beta: float
) -> None:
    check_input(x, None)
    check_range_state(x, state_min, state_max, step, beta)


def _reference_update(
    x: Tensor, state_min: Tensor, state_max: Tensor, step: Tensor, beta: float
) -> None:
    _fake_update(x, state_min, state_max, step, beta)
    reference.update_range(x, state_min, state_max, step, beta)


def _fake_search(x: Tensor, bits: int, candidates: int, norm: float) -> Pair:
    check_input(x, None)
    check_search(x, bits, candidates, norm)
    if norm > MAX_KERNEL_NORM:
        raise ValueError(f"norm must be at most {MAX_KERNEL_NORM}, got {norm}")
    low, high = (x.new_empty((), dtype=torch.float32) for _ in range(2))
    return low, high


def _reference_search(x: Tensor, bits: int, candidates: int, norm: float) -> Pair:
    _fake_search(x, bits, candidates, norm)
    return reference.search_range(x, bits, candidates=candidates, norm=norm)


OPS = {
    "update_range": Op(
        "(Tensor x, Tensor(a!) state_min, Tensor(b!) state_max, Tensor(c!) step, float beta) -> ()",
        _fake_update,
        _reference_update,
        None,
        triton_arguments=5,
    ),
    "search_range": Op(
        "(Tensor x, int bits, int candidates, float norm) -> (Tensor, Tensor)",
        _fake_search,
        _reference_search,
        None,
        triton_arguments=4,
    ),
}
