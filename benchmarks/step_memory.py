"""Peak memory of one fine-tuning step, ours and the published one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from synq_fast.runtime.precision import tensor_float32
from synq_fast.runtime.replay import WARM_UP

from . import harness
from .cases import Case, Workload, load
from .engine import engine_trainer
from .peak_memory import peak_bytes
from .plain_passes import plain_step
from .published import published_step, step_config

PROGRAMS = ("ours", "published", "plain passes, 9F")


def program(name: str, work: Workload) -> Callable[[], object]:
    """The step of one of `PROGRAMS`."""
    if name == "ours":
        return engine_trainer(work).advance
    if name == "published":
        return published_step(work, step_config(work))
    return plain_step(work.teacher.module, work.images)


def step_peak(name: str, case: Case, threads: int = harness.THREADS) -> int:
    """Bytes that a step needs at its peak, beyond what stays between two steps.

    On a CPU that is the resident memory of a fresh process, under the allocator setting that the
    engine works with; on a GPU what PyTorch has allocated while it records the step and replays it.
    """
    if harness.DEVICE.type == "cuda":
        run = program(name, load(case))
        with tensor_float32(False):
            for _ in range(WARM_UP):
                run()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            # The recording, whose memory stays its own, and a replay of it.
            for _ in range(harness.RECORDED - WARM_UP):
                run()
        return int(torch.cuda.max_memory_allocated() - before)
    package = __package__
    setup = f"""
from {package} import harness, step_memory
from {package}.cases import Case, load
harness.use_device("cpu")
torch.set_num_threads({threads})
setting = harness.allocator(harness.allocator_settings()[-1])
setting.__enter__()
call = warm_up = step_memory.program({name!r}, load({case!r}))
"""
    return peak_bytes(setup)
