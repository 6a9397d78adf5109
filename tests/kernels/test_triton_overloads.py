"""The `.triton` overloads in the interpreter, and what the package says without Triton."""

import subprocess
import sys

import pytest
import torch

from synq_fast import ops, reference
from tests.kernel_cases import assert_same_bits

RANGE = torch.full((4,), -1.0), torch.full((4,), 0.75)


@pytest.mark.parametrize("ste", ["identity", "clip"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["given", "dynamic"])
def test_gradient(ste: str, dynamic: bool) -> None:
    x = torch.randn(3, 4, 5)
    gradient = torch.randn_like(x)
    results = []
    for backend in ("reference", "triton"):
        leaf = x.clone().requires_grad_()
        with ops.backend(backend):
            if dynamic:
                y = ops.fake_quantize_dynamic(leaf, 4, axis=1, ste=ste)[0]
            else:
                y = ops.fake_quantize(leaf, *RANGE, 4, axis=1, ste=ste)
        y.backward(gradient)
        results.append((y.detach(), leaf.grad))
    for mine, theirs in zip(results[1], results[0], strict=True):
        assert_same_bits(mine, theirs, ste)
    assert (results[1][1] == gradient).all() == (ste == "identity" or dynamic)


def test_identity_saves_nothing() -> None:
    saved = []
    x = torch.randn(3, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda value: value):
        torch.ops.synq_fast.fake_quantize.triton(x, *RANGE, 4, 1, None, False)
    assert saved == []


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_opcheck(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 4, 3, 3).to(memory_format=memory_format)
    leaf = x.clone().requires_grad_()
    library = torch.ops.synq_fast
    for axis in (None, 1):
        bounds = RANGE if axis == 1 else (RANGE[0][0], RANGE[1][0])
        for clip in (False, True):
            torch.library.opcheck(
                library.fake_quantize.triton, (leaf, *bounds, 4, axis, None, clip)
            )
            torch.library.opcheck(
                library.fake_quantize_dynamic.triton, (leaf, 4, axis, None, clip, clip)
            )
        torch.library.opcheck(library.fake_quantize_backward.triton, (x, x, *bounds, 4, axis, None))
        torch.library.opcheck(library.quantize_codes.triton, (x, *bounds, 4, axis, None))


def test_codes() -> None:
    x = torch.randn(3, 4, 5)
    with ops.backend("triton"):
        actual = ops.quantize_codes(x, *RANGE, 8, axis=1)
    for mine, theirs in zip(actual, reference.quantize_codes(x, *RANGE, 8, axis=1), strict=True):
        assert_same_bits(mine, theirs, "codes")


def test_without_triton_the_package_imports_and_kernels_explain_themselves() -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch
import synq_fast
assert synq_fast.ops.fake_quantize(torch.zeros(3), -1.0, 1.0, 4).shape == (3,)
try:
    import synq_fast.kernels
except ImportError as error:
    assert "needs Triton" in str(error) and "pip install triton" in str(error), error
else:
    raise AssertionError("synq_fast.kernels imported without Triton")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
