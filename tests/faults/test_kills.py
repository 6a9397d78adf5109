import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """In memory where there is such a place: flushing small files to a disk takes most time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("kills")
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def scenarios(folder):
    if sys.platform != "linux":
        pytest.skip("needs fork, SIGKILL and /proc")
    command = [sys.executable, "-m", "tests.faults.kills", str(folder), "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    errors = folder / "errors.txt"
    said = errors.read_text() if errors.exists() else ""
    assert done.returncode == 0, done.stderr[-3000:] + said[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_kills_land_in_every_phase(scenarios):
    landed = Counter(
        where for s in scenarios for where in s["landed"] if s["kind"] in ("random", "chain")
    )
    for phase in ("centers", "synthesis", "calibration", "reconstruction", "fine-tuning", "saving"):
        assert landed[phase] >= 3, landed
    assert landed.total() >= 36
    events = " ".join(w for s in scenarios for w in s["landed"] if s["kind"] == "event")
    # Which of several files of a kind is drawn at random.
    for file in ("run", r"shard-\d+", r"shard-\d+\.partial", r"centers-\d+", "calibration",
                 r"block-\d+", "checkpoint", r"checkpoint\.previous", "model"):  # fmt: skip
        assert re.search(rf"rename to {file}\.(json|safetensors)", events), events
    assert "unlink shard" in events and "flush checkpoint" in events


def test_every_resumed_run_ends_in_the_same_bits(scenarios):
    assert [s for s in scenarios if s["different"]] == []


def test_a_kill_costs_one_step_at_most(scenarios):
    """The interval between two checkpoints is one step here."""
    for scenario in scenarios:
        # One more where the process died between a step's beginning and the end of its saving.
        assert all(0 <= n <= len(scenario["landed"]) for n in scenario["again"].values()), scenario
