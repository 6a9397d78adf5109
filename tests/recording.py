"""Capturing a call on a GPU, as tests of ops do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from synq_fast.runtime.capture import capture, warm_up

_Result = TypeVar("_Result")


def recorded(step: Callable[[], _Result]) -> tuple[torch.cuda.CUDAGraph, _Result]:
    """A graph of ``step``, which must not wait for the device, and the result that it fills."""
    device = torch.device("cuda")
    warm_up(step, device)
    warm_up(step, device, must_not_wait=True)
    return capture(step, device)
