"""Which implementation an op uses: one process-wide choice, resolved per op and device."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.autograd import forward_ad

from synq_fast.errors import ArgumentError, SynqFastError
from synq_fast.ops._native import CPU_REASON, CUDA_REASON

BACKENDS = ("reference", "cpu", "cuda", "triton")
CHOICES = ("auto", *BACKENDS)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None

_NOT_BUILT = {
    "cpu": CPU_REASON,
    "cuda": CUDA_REASON,
    "triton": None if HAS_TRITON else "Triton is not installed; `pip install triton`",
}
_BUILT = {name: reason is None for name, reason in _NOT_BUILT.items()}
# Fastest first; what is left runs on the reference.
_PREFERENCE = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}
_DEVICES = {
    "cpu": frozenset({"cpu"}),
    "cuda": frozenset({"cuda"}),
    "triton": frozenset({"cuda", "cpu"} if INTERPRETED else {"cuda"}),
}


class BackendUnavailableError(SynqFastError, RuntimeError):
    """The backend asked for cannot run this op here."""


def _check_choice(name: str) -> str:
    if name not in CHOICES:
        raise ValueError(f"backend must be one of {', '.join(CHOICES)}, got {name!r}")
    return name


def _initial_choice() -> str:
    name = os.environ.get("SYNQ_FAST_BACKEND") or "auto"
    if name not in CHOICES:
        raise ArgumentError(
            f"SYNQ_FAST_BACKEND must be one of {', '.join(CHOICES)}, got {name!r}; "
            "correct or unset the environment variable"
        )
    return name


def _devices_of(choice: str) -> dict[str, str]:
    """Returns the backend that a choice means on each type of device where it runs."""
    if choice == "reference":
        return dict.fromkeys(_PREFERENCE, "reference")
    if choice != "auto":
        return dict.fromkeys(_DEVICES[choice], choice) if _BUILT[choice] else {}
    return {
        device: next((name for name in names if _BUILT[name]), "reference")
        for device, names in _PREFERENCE.items()
    }


def _choose(name: str) -> None:
    global _choice, on_cpu, on_cuda
    _choice = name
    devices = _devices_of(name)
    on_cpu, on_cuda = devices.get("cpu"), devices.get("cuda")


# The backends of these devices under the choice in force; None for one that cannot run there.
on_cpu: str | None
on_cuda: str | None
_choice: str
_choose(_initial_choice())


def select(op: str, device: torch.device) -> str:
    """Returns the backend that runs `op` on `device`: "reference", "cpu", "cuda" or "triton".

    Inside a level of forward-mode differentiation that is the reference: the kernels know none.

    Raises:
        BackendUnavailableError: A backend was chosen that was not built or does not run on
            `device`.
    """
    chosen = {"cpu": on_cpu, "cuda": on_cuda}.get(device.type)
    if chosen is None:
        if _choice not in ("auto", "reference"):
            raise BackendUnavailableError(_explain(_choice, op, device))
        chosen = "reference"
    return chosen if forward_ad._current_level < 0 else "reference"


def _explain(name: str, op: str, device: torch.device) -> str:
    reasons = available_backends()
    if reasons[name] is not None:
        problem = f"the backend {name!r} is not available: {reasons[name]}"
    else:
        problem = f"the backend {name!r} does not run on a tensor on {device}"
    usable = [
        other
        for other in BACKENDS
        if reasons[other] is None and (other == "reference" or device.type in _DEVICES[other])
    ]
    missing = [f"{other} ({reason})" for other, reason in reasons.items() if reason is not None]
    rest = f"; not available: {'; '.join(missing)}" if missing else ""
    return f"{op}: {problem}. Available for this op on {device}: {', '.join(usable)}{rest}."


def kernels_on(device: torch.device) -> tuple[str, str | None]:
    """Returns the backend that ops on `device` get, and why no faster one, or None if it is that.

    The backend is one of `BACKENDS`. With the choice "auto" the reasons are those for which each
    faster one was not built; otherwise that it was chosen.
    """
    if _choice != "auto":
        return _choice, "chosen by SYNQ_FAST_BACKEND or ops.backend"
    faster: list[str] = []
    for name in _PREFERENCE.get(device.type, ()):
        if _BUILT[name]:
            return name, "; ".join(faster) or None
        faster.append(f"no {name} kernels: {_NOT_BUILT[name]}")
    return "reference", "; ".join(faster) or f"there are no kernels for {device.type} devices"


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Chooses the backend of all ops inside the `with` block, for the whole process.

    Args:
        name: "auto" (the fastest built for a tensor's device), "reference", "cpu", "cuda" or
            "triton". The environment variable SYNQ_FAST_BACKEND gives the initial choice.

    Raises:
        ValueError: `name` is none of these. A backend that is known but not available raises
            `BackendUnavailableError` when an op is called.
    """
    previous = _choice
    _choose(_check_choice(name))
    try:
        yield
    finally:
        _choose(previous)


def current_backend() -> str:
    """Returns the choice in force: "auto", "reference", "cpu", "cuda" or "triton"."""
    return _choice


def available_backends() -> dict[str, str | None]:
    """Returns each backend's name with None, or the reason why it cannot run on this machine."""
    has_gpu = torch.cuda.is_available()
    no_gpu = "torch finds no CUDA device on this machine"
    triton_reason = _NOT_BUILT["triton"]
    if triton_reason is None and not (has_gpu or INTERPRETED):
        triton_reason = f"{no_gpu}; TRITON_INTERPRET=1 runs the kernels, slowly, on the CPU"
    return {
        "reference": None,
        "cpu": CPU_REASON,
        "cuda": CUDA_REASON or (None if has_gpu else no_gpu),
        "triton": triton_reason,
    }
