"""Which kernels a run works with."""

from __future__ import annotations

import torch

from synq_fast.ops._backend import kernels_on
from synq_fast.runtime.progress import Reporter


def kernels_in_use(device: torch.device, reporter: Reporter) -> dict[str, str | None]:
    """The ``backend`` that ops on a device get and the ``reason`` for no faster one, or None.

    A reason is also printed.
    """
    backend, reason = kernels_on(device)
    if reason is not None:
        kernels = "plain PyTorch, several times slower" if backend == "reference" else backend
        reporter.line(f"kernels: {kernels} ({reason})")
    return {"backend": backend, "reason": reason}
