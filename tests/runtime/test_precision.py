"""TF32 on and off through PyTorch's two switches, which raise where they are mixed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch

from synq_fast.runtime.precision import matmul_uses_tensor_float32, tensor_float32

MATMUL, CUDNN, MKLDNN = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn
NEWER = hasattr(MATMUL, "fp32_precision")
needs_newer = pytest.mark.skipif(not NEWER, reason="PyTorch before 2.9 has one switch")


def switches() -> dict[str, object]:
    """All settings; where reading one raises, that."""
    reads: dict[str, Callable[[], object]] = {
        "matmul": lambda: MATMUL.allow_tf32,
        "cudnn": lambda: CUDNN.allow_tf32,
        "name": torch.get_float32_matmul_precision,
    }
    if NEWER:
        reads |= {
            "generic": lambda: torch.backends.fp32_precision,
            "new matmul": lambda: MATMUL.fp32_precision,
            "new conv": lambda: CUDNN.conv.fp32_precision,
            "new rnn": lambda: CUDNN.rnn.fp32_precision,
            "cpu matmul": lambda: MKLDNN.matmul.fp32_precision,
            "cpu conv": lambda: MKLDNN.conv.fp32_precision,
        }
    return {name: _or_error(read) for name, read in reads.items()}


def _or_error(read: Callable[[], object]) -> object:
    try:
        return read()
    except RuntimeError:
        return "raises"


@pytest.fixture(autouse=True)
def _default_switches():
    yield
    torch.set_float32_matmul_precision("highest")
    CUDNN.allow_tf32 = True
    if NEWER:
        torch.backends.fp32_precision = "none"
        for owner in (MATMUL, MKLDNN.matmul, MKLDNN.conv):
            owner.fp32_precision = "none"
        CUDNN.conv.fp32_precision = CUDNN.rnn.fp32_precision = "tf32"


def _set(path: str, value: object) -> None:
    *owners, name = path.split(".")
    owner = torch.backends
    for part in owners:
        owner = getattr(owner, part)
    setattr(owner, name, value)


USERS = {
    "defaults": {},
    "older on": {"cuda.matmul.allow_tf32": True},
    "older off": {"cuda.matmul.allow_tf32": False, "cudnn.allow_tf32": False},
    "named high": "high",
    "named medium": "medium",
}
NEWER_USERS = {
    "newer on": {"cuda.matmul.fp32_precision": "tf32"},
    "newer off": {"cudnn.conv.fp32_precision": "ieee", "cudnn.rnn.fp32_precision": "ieee"},
    "convolutions alone": {"cudnn.conv.fp32_precision": "ieee"},
    "everything on": {"fp32_precision": "tf32"},
    "everything off": {"fp32_precision": "ieee"},
    "mixed": {"cuda.matmul.allow_tf32": True, "cuda.matmul.fp32_precision": "ieee"},
    "mixed the other way": {"cudnn.allow_tf32": False, "fp32_precision": "tf32"},
}
CASES = {**USERS, **(NEWER_USERS if NEWER else {})}


def as_user(name: str) -> None:
    settings = CASES[name]
    if isinstance(settings, str):
        torch.set_float32_matmul_precision(settings)
        return
    for path, value in settings.items():
        _set(path, value)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("enabled", [False, True])
def test_holds_inside_and_is_put_back(name, enabled):
    as_user(name)
    before = switches()
    with pytest.raises(ZeroDivisionError), tensor_float32(enabled):
        inside = switches()
        assert matmul_uses_tensor_float32() is enabled
        raise ZeroDivisionError
    assert switches() == before
    assert inside["matmul"] is inside["cudnn"] is enabled
    if NEWER:
        gpu = {inside[f"new {part}"] for part in ("matmul", "conv", "rnn")}
        assert gpu == {"tf32" if enabled else "ieee"}
        assert inside["cpu matmul"] == inside["cpu conv"] == "ieee"


@needs_newer
def test_mixed_switches_raise_in_pytorch_itself():
    # What this module is there for; where it no longer raises, the module can go.
    MATMUL.fp32_precision = "tf32"
    with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
        _ = MATMUL.allow_tf32
    assert matmul_uses_tensor_float32()


@needs_newer
def test_what_follows_the_general_setting_still_follows_it_afterwards():
    torch.backends.fp32_precision = "tf32"
    with tensor_float32(False):
        pass
    assert MATMUL.fp32_precision == "tf32"
    torch.backends.fp32_precision = "ieee"
    assert MATMUL.fp32_precision == "ieee"


@pytest.mark.parametrize("enabled", [None, False, True])
@pytest.mark.parametrize("name", CASES)
def test_cuda_kernels_see_the_same(name, enabled):
    native = pytest.importorskip("synq_fast._C")
    as_user(name)
    with nullcontext() if enabled is None else tensor_float32(enabled):
        assert native.matmul_uses_tf32() is matmul_uses_tensor_float32()


def test_before_the_newer_switch(monkeypatch):
    class Older:
        allow_tf32 = True

    class OlderConvolutions:
        allow_tf32 = True

    monkeypatch.setattr(torch.backends.cuda, "matmul", Older())
    monkeypatch.setattr(torch.backends, "cudnn", OlderConvolutions())
    assert matmul_uses_tensor_float32()
    with tensor_float32(False):
        assert not matmul_uses_tensor_float32()
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
