"""The backends and devices that the quantization ops are tested on."""

import pytest
import torch

from synq_fast import ops

BACKENDS = [
    pytest.param("reference", "cpu", id="reference-cpu"),
    pytest.param("cpu", "cpu", id="cpu"),
    pytest.param("reference", "cuda", id="reference-cuda", marks=pytest.mark.cuda),
    pytest.param("cuda", "cuda", id="cuda", marks=pytest.mark.cuda),
    pytest.param("triton", "cuda", id="triton", marks=pytest.mark.cuda),
]


def require(backend: str) -> None:
    """Skips by name what this installation was built without."""
    reason = ops.available_backends()[backend]
    if reason is not None:
        pytest.skip(f"backend {backend}: {reason}")


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Asserts equal type and bits; a NaN equals any NaN."""
    torch.testing.assert_close(actual.cpu(), expected.cpu(), rtol=0, atol=0, equal_nan=True)


@pytest.fixture(params=[pytest.param(p.values, id=p.id, marks=p.marks) for p in BACKENDS])
def device(request):
    """The device of a backend, which is chosen meanwhile; skips by name what cannot run."""
    name, where = request.param
    require(name)
    with ops.backend(name):
        yield where
