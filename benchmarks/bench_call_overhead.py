"""What a call costs beside its work: fake quantization of a (64, 64) tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import harness
from synq_fast import ops

BITS = 4
CALLS, ROUNDS = 1000, 10


@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "recording"])
def bench_call_overhead(gradient: bool, compare: Callable[..., harness.Comparison]) -> None:
    """The registered op and the public function against ATen's op, 10,000 calls of each."""
    x = torch.randn(64, 64, device=harness.DEVICE, requires_grad=gradient)
    low, high = x.detach().min(), x.detach().max()
    registered = torch.ops.synq_fast.fake_quantize
    last = 2**BITS - 1
    step = ((high - low) / last).item()

    assert torch.equal(
        registered(x, low, high, BITS, None, False), ops.fake_quantize(x, low, high, BITS)
    )
    compare(
        f"64x64, {'recording a gradient' if gradient else 'no gradient'}",
        {
            "registered op": lambda: registered(x, low, high, BITS, None, False),
            "registered op, default overload": lambda: registered.default(
                x, low, high, BITS, None, False
            ),
            "public function": lambda: ops.fake_quantize(x, low, high, BITS),
            "aten fake_quantize_per_tensor_affine": lambda: torch.fake_quantize_per_tensor_affine(
                x, step, 8, 0, last
            ),
            "clone": x.clone,
        },
        ours="registered op",
        copy="clone",
        rounds=ROUNDS,
        calls=CALLS,
        warmup=100,
    )
