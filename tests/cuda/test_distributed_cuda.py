"""Ranks on GPUs: gloo where they share one, nccl where each has its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from tests.rank_programs import OVERRIDES
from tests.tiny import SHAPE, TINY_OVERRIDES, run

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.cuda


def _on_one_gpu(rank: int, folder: Path) -> None:
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    result = run(overrides=OVERRIDES, output=folder / "run", device="cuda:0")
    state = {name: value.cpu() for name, value in result.model.state_dict().items()}
    torch.save((state, result.history), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_of_the_callers_group_share_a_gpu(tmp_path):
    torch.multiprocessing.spawn(_on_one_gpu, (tmp_path,), nprocs=2)
    (first, history), (second, same) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert history == same and len(history) == 1
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_nccl_under_torchrun(tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("nccl needs two CUDA devices")
    settings = {**TINY_OVERRIDES, **OVERRIDES}
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "synq_fast.cli", "quantize", "--model", "tests.tiny:tiny_net"]
    command += ["--input-shape", ",".join(map(str, SHAPE)), "--recipe", "synq-digits"]
    command += [part for item in settings.items() for part in ("--set", "{}={}".format(*item))]
    ended = subprocess.run(
        [sys.executable, *command, "--output", str(tmp_path)],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "w4a4" / "model.safetensors").exists()
