"""One training step of a quantized vision transformer beside PyTorch's own quantizers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from . import harness
from .peak_memory import peak_bytes
from .tables import Table, targets_table
from .transformer import BATCH, FORMS, step

# What a step must be at least, in times of a column.
TARGETS = {"PyTorch's quantizers": 2.0, "float": 1 / 1.5}


def bench_transformer(
    compare: Callable[..., harness.Comparison], show: Callable[[Table], None]
) -> None:
    """DeiT-Tiny at W4A4: forward and backward to weights and to all learned ranges."""
    columns = {form: step(form) for form in FORMS}
    losses = [float(column()) for column in columns.values()]
    assert all(torch.tensor(losses).isfinite())
    # Ranges are held otherwise, so a few codes are others.
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    row = compare(
        f"DeiT-Tiny W4A4, 224 px, batch {BATCH}", columns, ours="ours", clock="wall", rounds=7
    )
    show(targets_table(row, TARGETS))
    if harness.DEVICE.type == "cpu":
        memory = [(form, _peak(form) / 2**20) for form in FORMS]
        show(Table(row.suite, "peak memory of a step", ("form", "MiB"), memory))


def _peak(form: str) -> int:
    return peak_bytes(
        f"""
from {__package__} import harness, transformer
harness.use_device("cpu")
torch.set_num_threads({harness.THREADS})
call = warm_up = transformer.step({form!r})
"""
    )
