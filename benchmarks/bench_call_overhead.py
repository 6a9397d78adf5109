"""What a call costs beside its work: each registered op on a tiny tensor, beside an ATen op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from synq_fast import ops
from synq_fast.testing import CASES, OpCase
from synq_fast.testing.layouts import converted

from . import harness

CALLS, ROUNDS = 1000, 10
# What a call may cost, in calls of the ATen op.
REGISTERED_LIMIT, PUBLIC_LIMIT = 1.2, 2.0
# The ops that have a neighbour in ATen; the others take or give what nothing there does.
NEIGHBOURS = [case for case in CASES.values() if case.nearest is not None]

Inputs = tuple[Tensor, ...]


def inputs_of(case: OpCase) -> Inputs:
    """The tensors of the typical call, on the measured device."""
    return tuple(converted(x, device=harness.DEVICE) for x in case.typical().tensors)


def public_call(case: OpCase, inputs: Inputs) -> Callable[[], object]:
    """The public function's call that does as much as the neighbour's."""
    if case.nearest is not None and case.nearest.ours is not None:
        return partial(case.nearest.ours, ops, *inputs)
    return partial(case.call, ops, *inputs, **case.typical().options)


class _Recorder(TorchDispatchMode):
    """Notes the first call of a registered op, with the arguments the public function gives it.

    An op may have a second form that also computes what its gradient needs, `<op>_with_gradient`.
    """

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op
        self.call: tuple[Any, tuple[Any, ...], dict[str, Any]] | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        names = f"synq_fast.{self.op}.", f"synq_fast.{self.op}_"
        if self.call is None and str(func).startswith(names):
            self.call = func, tuple(args), kwargs or {}
        return func(*args, **(kwargs or {}))


def registered_call(case: OpCase, inputs: Inputs) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return the op's overload and the arguments that the public function leads to.

    Raises:
        LookupError: There is no such op, or the public function does not call it here.
    """
    name = case.registered or case.name
    if not hasattr(torch.ops.synq_fast, name):
        raise LookupError(f"{name} is not a registered op")
    with _Recorder(name) as recorder:
        public_call(case, inputs)()
    if recorder.call is None:
        raise LookupError(f"{case.name} runs on the reference here")
    call: tuple[Any, tuple[Any, ...], dict[str, Any]] = recorder.call
    return call


MEASURED = [
    pytest.param(case, gradient, id=f"{case.name}-{name}")
    for case in NEIGHBOURS
    for gradient, name in ((False, "inference"), (True, "recording"))
    if case.differentiable or not gradient
]


@pytest.mark.parametrize("allocator", ["default"], indirect=True)
@pytest.mark.parametrize(("case_of_op", "gradient"), MEASURED)
def bench_call_overhead(
    case_of_op: OpCase, gradient: bool, compare: Callable[..., harness.Comparison]
) -> None:
    """The registered op and the public function against ATen's op, 10,000 calls of each."""
    inputs = inputs_of(case_of_op)
    for x in inputs[: case_of_op.differentiable]:
        x.requires_grad_(gradient)
    try:
        overload, arguments, options = registered_call(case_of_op, inputs)
    except LookupError as reason:
        pytest.skip(str(reason))
    assert case_of_op.nearest is not None
    packet = overload.overloadpacket
    aten_name = f"aten {case_of_op.nearest.name}"
    x = inputs[0]
    compare(
        f"{case_of_op.name} {'x'.join(map(str, x.shape))}"
        f", {'recording a gradient' if gradient else 'no gradient'}",
        {
            "registered op": lambda: packet(*arguments, **options),
            "registered op, its overload": lambda: overload(*arguments, **options),
            "public function": public_call(case_of_op, inputs),
            aten_name: case_of_op.nearest.prepare(*inputs),
            "clone": x.clone,
        },
        ours="registered op",
        elements=x.numel(),
        limits={
            "registered op": (aten_name, REGISTERED_LIMIT),
            "public function": (aten_name, PUBLIC_LIMIT),
        },
        rounds=ROUNDS,
        calls=CALLS,
        warmup=100,
        clock="wall",
    )
