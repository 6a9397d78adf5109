"""Registers every op of `_definitions` with torch.

`torch.ops.synq_fast.<op>` always works: the compiled kernels register under it in C++, and what is
not compiled falls back to Triton on CUDA devices and to the reference elsewhere. `<op>.triton` is
the same schema bound to the Triton kernel. Under autocast the ops keep the type of their input.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch

from synq_fast.ops import _backend
from synq_fast.ops._definitions import OPS
from synq_fast.ops._native import CPU_REASON, CUDA_REASON
from synq_fast.ops._op import Op, refuse_forward_mode
from synq_fast.ops._registry import LIBRARY


def _triton_kernel(name: str, op: Op) -> Callable[..., Any]:
    def launch(*arguments: Any) -> Any:
        kernels = importlib.import_module("synq_fast.kernels")
        if op.backward is not None:
            refuse_forward_mode(name)
        # The fake checks the arguments; the launchers expect them right.
        op.fake(*arguments)
        return getattr(kernels, name)(*arguments[: op.triton_arguments])

    return launch


def _triton_needs_gpu(name: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise _backend.BackendUnavailableError(
            f"synq_fast::{name}.triton runs on CUDA tensors; on CPU tensors only where "
            "TRITON_INTERPRET=1 is set before synq_fast is imported"
        )

    return refuse


def _reference(name: str, op: Op) -> Callable[..., Any]:
    if op.backward is None:
        return op.reference

    def call(*arguments: Any) -> Any:
        refuse_forward_mode(name)
        return op.reference(*arguments)

    return call


def _define(library: torch.library.Library, name: str, op: Op) -> None:
    for suffix in ("default", "triton"):
        qualified = name if suffix == "default" else f"{name}.{suffix}"
        library.define(f"{qualified}{op.schema}", tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"synq_fast::{qualified}", op.fake, lib=library)
        if suffix != "triton" and CPU_REASON is None:
            continue
        if op.backward is None:
            library.impl(qualified, torch.library.fallthrough_kernel, "Autograd")
        else:
            setup, backward = op.backward(suffix)
            torch.library.register_autograd(
                f"synq_fast::{qualified}", backward, setup_context=setup, lib=library
            )
    triton = _triton_kernel(name, op)
    library.impl(f"{name}.triton", triton, "CUDA")
    cpu = triton if _backend.INTERPRETED else _triton_needs_gpu(name)
    library.impl(f"{name}.triton", cpu, "CPU")
    library.impl(name, _reference(name, op), "CompositeExplicitAutograd")
    if CUDA_REASON is not None and _backend.HAS_TRITON:
        library.impl(name, triton, "CUDA")


for _name, _op in OPS.items():
    _define(LIBRARY, _name, _op)
