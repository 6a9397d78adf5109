"""Columns that several suites share: our backends on this device, and compiled functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._inductor import config as inductor_config

from synq_fast import ops
from synq_fast.testing import CASES, Sample

from . import cuda_timing, harness

_BACKENDS_OF_DEVICE = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}


def call(function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Callable[[], Any]:
    """``function`` of these arguments, as a column.

    On a GPU small tensor arguments are copied and the calls take turns, so that none finds its
    inputs in the cache. A row rotates only where all of its columns do.
    """
    if harness.DEVICE.type == "cuda":
        return cuda_timing.rotate(function, arguments, options)
    return partial(function, *arguments, **options)


def our_columns(
    function: Callable[..., object], /, *arguments: Any, **options: Any
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Our op on each backend with kernels for this device.

    Returns:
        Callables by column name (``ours (cpu)``), fastest default first, and the reasons of the
        backends that are not there.
    """
    available: dict[str, str | None] = ops.available_backends()

    def on(backend: str, *arguments: Any, **options: Any) -> Any:
        with ops.backend(backend):
            return function(*arguments, **options)

    columns: dict[str, Callable[[], Any]] = {}
    omitted: dict[str, str] = {}
    for backend in _BACKENDS_OF_DEVICE[harness.DEVICE.type]:
        reason = available.get(backend, "unknown to this build")
        if reason is None:
            columns[f"ours ({backend})"] = call(on, backend, *arguments, **options)
        else:
            omitted[f"ours ({backend})"] = reason
    return columns, omitted


def compiled_column(
    function: Callable[..., Any], *arguments: Any, own: bool = False, **options: Any
) -> tuple[Callable[[], Any] | None, str]:
    """``torch.compile`` of a function, compiled here and now; None and the reason if it fails.

    With ``own`` it always gets these very arguments, so that the caller can ask for their
    gradients.
    """
    torch.compiler.reset()
    compiled = torch.compile(function, dynamic=False)
    column = (partial if own else call)(compiled, *arguments, **options)
    try:
        # The thread count is part of the generated code but not of the cache's key.
        with inductor_config.patch(force_disable_caches=True):
            column()
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return column, ""


def bytes_of(op: str, *tensors: Tensor) -> int:
    """What a call of an op must read and write at least, as its case says."""
    return CASES[op].bytes_moved(Sample("measured", tensors))


def copy_column(bytes_moved: int) -> Callable[[], Any]:
    """A plain copy that reads half of ``bytes_moved`` bytes and writes the other half.

    For ops whose inputs and outputs differ in size; where they do not, ``x.clone`` says more.
    """
    return call(torch.zeros(bytes_moved // 8, device=harness.DEVICE).clone)
