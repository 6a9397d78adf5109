"""Arithmetic of float32 matrix products and convolutions on a GPU: full precision, or TF32.

PyTorch has two switches for it, ``allow_tf32`` and (from 2.9 on) ``fp32_precision``, and raises
where the older one is read after the newer one was set otherwise. Only this module touches them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def matmul_uses_tensor_float32() -> bool:
    """Whether float32 matrix products on a GPU may use TF32, whichever switch says so."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return bool(matmul.fp32_precision == "tf32")
    return bool(matmul.allow_tf32)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The networks' type inside the block: bfloat16 for "bf16", otherwise that of their weights."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def tensor_float32(enabled: bool) -> Iterator[None]:
    """Allow or forbid TF32 inside the block, and restore the caller's settings after it.

    PyTorch allows it in convolutions by default, so float32 has to be asked for. On a CPU the
    block computes in float32 either way, also where the caller allows bfloat16.
    """
    restore = _older_switches(), _newer_switches()
    # Both, so that code that reads either finds what holds.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = enabled
    for owner, above in _owners():
        on_gpu = above is torch.backends.cudnn
        owner.fp32_precision = "tf32" if enabled and on_gpu else "ieee"
    try:
        yield
    finally:
        for put_back in restore:
            put_back()


def _owners() -> list[tuple[Any, Any]]:
    """What has a ``fp32_precision`` that decides, and whose it follows by default."""
    # torch's stubs know only some of these switches.
    backends: Any = torch.backends
    matmul, cudnn, mkldnn = backends.cuda.matmul, backends.cudnn, backends.mkldnn
    if not hasattr(matmul, "fp32_precision"):
        return []
    gpu, cpu = (matmul, cudnn.conv, cudnn.rnn), (mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    return [*((owner, cudnn) for owner in gpu), *((owner, mkldnn) for owner in cpu)]


def _newer_switches() -> Callable[[], None]:
    """Restores ``fp32_precision`` as it is now."""
    # What equals the setting above it goes on following it.
    found = [
        (owner, "none" if owner.fp32_precision == above.fp32_precision else owner.fp32_precision)
        for owner, above in _owners()
    ]

    def restore() -> None:
        for owner, value in found:
            owner.fp32_precision = value

    return restore


def _older_switches() -> Callable[[], None]:
    """Restores ``allow_tf32`` and ``set_float32_matmul_precision`` as they are now."""
    backends: Any = torch.backends
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    name = _read(torch.get_float32_matmul_precision, lambda: "")
    products = _read(lambda: matmul.allow_tf32, lambda: matmul.fp32_precision != "tf32")
    convolutions = _read(lambda: cudnn.allow_tf32, lambda: cudnn.conv.fp32_precision != "tf32")

    def restore() -> None:
        if name == "medium":
            torch.set_float32_matmul_precision(name)
        else:
            matmul.allow_tf32 = products
        cudnn.allow_tf32 = convolutions

    return restore


def _read(switch: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    # It raises where the two switches differ, which says what this one is.
    try:
        return switch()
    except RuntimeError:
        return otherwise()
