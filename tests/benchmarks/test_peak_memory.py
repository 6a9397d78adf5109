"""Peak memory of the patch similarity entropy, and that the measurement tells the difference."""

import sys

import pytest

from benchmarks.peak_memory import peak_bytes

SHAPE = (16, 196, 64)
ONE_TENSOR = 16 * 10 * 196 * 196 * 4  # images x points x similarities

SETUP = """
from synq_fast import {module}
tokens = torch.randn({shape})

def run(tokens):
    leaf = tokens.clone().requires_grad_()
    return torch.autograd.grad({module}.patch_similarity_entropy(leaf).sum(), leaf)

call = lambda: run(tokens)
warm_up = lambda: run(tokens[:1, :9])
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_the_kernel_stays_below_half_of_one_such_tensor() -> None:
    assert peak_bytes(SETUP.format(module="ops", shape=SHAPE)) < ONE_TENSOR / 2


def test_the_reference_does_not() -> None:
    assert peak_bytes(SETUP.format(module="reference", shape=SHAPE)) > 2 * ONE_TENSOR


def test_a_program_that_fails_is_reported() -> None:
    with pytest.raises(RuntimeError, match="no_such_name"):
        peak_bytes("warm_up = lambda: no_such_name")
