"""Which backend runs, and what is said where a choice cannot."""

import pytest
import torch

from synq_fast import ops
from tests.ops.processes import run


def test_a_choice_that_cannot_run_explains_itself():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ops.BackendUnavailableError, match="runs on CUDA tensors"):
        torch.ops.synq_fast.fake_quantize.triton(
            torch.ones(2), torch.zeros(()), torch.ones(()), 4, None, None, False
        )
    with pytest.raises(ValueError, match="backend must be one of auto"), ops.backend("gpu"):
        pass
    assert ops.current_backend() == "auto"


def test_initial_choice_comes_from_the_environment():
    code = "from synq_fast import ops; print(ops.current_backend())"
    assert run(code, SYNQ_FAST_BACKEND="reference").stdout == "reference\n"
    assert "SYNQ_FAST_BACKEND must be one of" in run(code, SYNQ_FAST_BACKEND="gpu").stderr
