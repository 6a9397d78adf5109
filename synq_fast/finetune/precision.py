"""Arithmetic of the networks' matrix products and convolutions on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tensor_float32(enabled: bool) -> Iterator[None]:
    """Allow or forbid TF32 inside the block, and restore the caller's settings after it.

    PyTorch allows it in convolutions by default, so float32 has to be asked for.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = enabled
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
