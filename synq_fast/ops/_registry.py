"""Registers ops with torch, each from one description.

`torch.ops.synq_fast.<op>` always works: the compiled kernels register under it in C++, and what is
not compiled falls back to Triton on CUDA devices and to the reference elsewhere. `<op>.triton` is
the same schema bound to the Triton kernel. Under autocast the ops keep the type of their input.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from synq_fast.ops import _backend
from synq_fast.ops._autograd import make_autograd, make_recorded
from synq_fast.ops._native import CPU_REASON, CUDA_REASON
from synq_fast.ops._rule import Rule, make_rule
from synq_fast.reference._forward_mode import in_forward_mode

DOUBLE = torch.float64
LIBRARY = torch.library.Library("synq_fast", "DEF")
# Every registered op by its name, in the order in which the ops' files are imported.
OPS: dict[str, "Op"] = {}


class Op:
    """A registered op.

    Attributes:
        name: Its name under `torch.ops.synq_fast`.
        rule: Its schema and gradients.
        fake: Checks the arguments and returns empty results.
        reference: The op on any device in plain PyTorch, without autograd.
        check_values: Checks what only reading the tensors can tell; None where there is nothing.
    """

    def __init__(
        self,
        rule: Rule,
        fake: Callable[..., Any],
        reference: Callable[..., Any],
        check_values: Callable[..., None] | None,
    ) -> None:
        self.name = rule.name
        self.rule = rule
        self.fake = fake
        self.reference = reference
        self.check_values = check_values
        packet = getattr(torch.ops.synq_fast, rule.name)
        self._overloads: dict[str, Callable[..., Any] | None] = {
            "reference": None,
            "cpu": packet.default,
            "cuda": packet.default,
            "triton": packet.triton,
        }

    def on(self, x: object, *others: object) -> Callable[..., Any] | None:
        """Returns the overload that runs on the device of `x`, or None where the reference does.

        That is also where one of the tensors is float64.

        Raises:
            BackendUnavailableError: The backend that was chosen cannot run there.
        """
        if not isinstance(x, Tensor):
            return self._overloads["cpu"]  # refuses it
        # As `select` does, without asking for the device: that takes as long as all of this.
        backend = _backend.on_cpu if x.is_cpu else _backend.on_cuda if x.is_cuda else None
        if backend is None:
            backend = _backend.select(self.name, x.device)
        if forward_ad._current_level >= 0 or x.dtype == DOUBLE:
            return None
        for value in others:
            if isinstance(value, Tensor) and value.dtype == DOUBLE:
                return None
        return self._overloads[backend]

    def check(self, *arguments: Any) -> None:
        """Raises what is wrong with the arguments, in words."""
        self.fake(*arguments)
        if self.check_values is not None:
            self.check_values(*arguments)

    def refuse(self, error: Exception, *arguments: Any) -> NoReturn:
        """Raises what is wrong with the arguments of a call that failed, else its error.

        Kernels test what memory safety needs, and in few words.
        """
        try:
            self.check(*arguments)
        except (TypeError, ValueError, IndexError) as explained:
            raise explained from None
        raise error


def register(
    name: str,
    schema: str,
    *,
    fake: Callable[..., Any],
    reference: Callable[..., Any],
    gradients: Mapping[str, str] | None = None,
    once: str = "",
    recorded: str = "",
    check_values: Callable[..., None] | None = None,
    triton_arguments: int | None = None,
) -> Op:
    """Registers an op under its name, and its Triton kernel as the overload `triton`.

    The build reads the name, the schema and the gradient rule from the source of the call, so these
    are literals; `_rule` says what a rule is. An op without a rule is a constant to autograd.

    Args:
        name: Name of the op.
        schema: Its arguments and results.
        fake: Checks the arguments and returns empty results.
        reference: The op in plain PyTorch, without autograd, on checked arguments.
        gradients: Expressions by the names of the arguments whose gradients they are.
        once: For an op without a second derivative, what its error calls it.
        recorded: The call of another op that also computes what the gradient needs; it runs where a
            gradient is recorded, and its first results are this op's.
        check_values: Checks values, for the reference and for the error of a failed call.
        triton_arguments: How many leading arguments the Triton launcher takes; None for all.
    """
    LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.define(f"{name}.triton{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    rule = make_rule(name, schema, gradients, once, recorded)
    op = OPS[name] = Op(rule, fake, reference, check_values)
    triton = _triton_kernel(op, triton_arguments)
    for suffix in ("default", "triton"):
        qualified = name if suffix == "default" else f"{name}.{suffix}"
        torch.library.register_fake(f"synq_fast::{qualified}", fake, lib=LIBRARY)
        if suffix == "triton" or CPU_REASON is not None:
            _register_autograd(rule, qualified, suffix)
    LIBRARY.impl(f"{name}.triton", triton, "CUDA")
    on_cpu = triton if _backend.INTERPRETED else _refuse_cpu(name)
    LIBRARY.impl(f"{name}.triton", on_cpu, "CPU")
    LIBRARY.impl(name, reference_kernel(op), "CompositeExplicitAutograd")
    if CUDA_REASON is not None and _backend.HAS_TRITON:
        LIBRARY.impl(name, triton, "CUDA")
    return op


def _register_autograd(rule: Rule, qualified: str, suffix: str) -> None:
    if rule.is_constant:
        LIBRARY.impl(qualified, torch.library.fallthrough_kernel, "Autograd")
    elif rule.recorded:
        LIBRARY.impl(qualified, make_recorded(rule, suffix), "Autograd", with_keyset=True)
    else:
        setup, backward = make_autograd(rule, suffix)
        torch.library.register_autograd(
            f"synq_fast::{qualified}", backward, setup_context=setup, lib=LIBRARY
        )


def _refuse_forward_mode(op: Op) -> None:
    """Raises inside a level of forward-mode differentiation; csrc/ops/autograd.h does the same.

    Below autograd tangents can no longer be seen, so this does not look for any.
    """
    if not op.rule.is_constant and in_forward_mode():
        raise NotImplementedError(
            f"synq_fast::{op.name} has no forward-mode derivative; call the function of the same "
            "name in synq_fast.ops, which then runs the reference, or use reverse mode"
        )


def _triton_kernel(op: Op, count: int | None) -> Callable[..., Any]:
    def launch(*arguments: Any) -> Any:
        kernels = importlib.import_module("synq_fast.kernels")
        _refuse_forward_mode(op)
        # The launchers expect the arguments right.
        op.fake(*arguments)
        return getattr(kernels, op.name)(*arguments[:count])

    return launch


def _refuse_cpu(name: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise _backend.BackendUnavailableError(
            f"synq_fast::{name}.triton runs on CUDA tensors; on CPU tensors only where "
            "TRITON_INTERPRET=1 is set before synq_fast is imported"
        )

    return refuse


def reference_kernel(op: Op) -> Callable[..., Any]:
    """Returns the reference of an op as torch calls it: with all checks, without autograd."""

    def call(*arguments: Any) -> Any:
        _refuse_forward_mode(op)
        op.check(*arguments)
        return op.reference(*arguments)

    return call


def like(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Gives a reference result the strides that the kernels and the fakes give."""
    wanted = torch.empty_like(x, dtype=y.dtype)
    return y.clone() if wanted.stride() == y.stride() else wanted.copy_(y)
