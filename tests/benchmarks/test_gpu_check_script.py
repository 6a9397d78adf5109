"""The script that a machine with a GPU runs, with a pretended Python that notes what is asked."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
STAGES = [
    "build with CUDA",
    "every op on Triton",
    "every op on CUDA",
    "bandwidth on CUDA",
    "recordings",
    "compute-sanitizer memcheck",
    "compute-sanitizer racecheck",
    "compute-sanitizer synccheck",
    "CUDA tests",
    "whole steps",
    "bandwidth on Triton",
]
# Answers the questions that the script asks, notes the rest; FAILING is a pattern of what fails.
PYTHON = """#!/bin/sh
case "$*" in
*get_device_name*) printf '%s' "$CARD"; exit 0 ;;
*"import torch"*) [ -z "${NO_TORCH:-}" ]; exit ;;
*"import xdist"*) exit 1 ;;
*_C.cuda_version*) echo "ran: check of the build" ;;
-c*) exit 0 ;;
*) echo "ran: $*" ;;
esac
case "$*" in $FAILING) exit 3 ;; esac
exit 0
"""
SANITIZER = """#!/bin/sh
echo "sanitizer: $*"
while [ "$1" != "$PYTHON" ]; do shift; done
"$@"
"""
# A clock that goes on by TICK seconds each time it is asked, and limits that only HANGING exceeds.
DATE = """#!/bin/sh
now=$(cat "$RESULTS.clock" 2>/dev/null || echo 0)
echo $((now + TICK)) >"$RESULTS.clock"
echo "$now"
"""
TIMEOUT = """#!/bin/sh
shift 3
case "$*" in $HANGING) exit 124 ;; esac
exec "$@"
"""
CARD = "nvidia-h100-80gb-hbm3 90-real"


@pytest.fixture
def machine(tmp_path):
    """Runs the script on a machine with a pretended Python, and perhaps other programs."""
    programs, results = tmp_path / "programs", tmp_path / "results"
    programs.mkdir()

    def program(name: str, text: str) -> None:
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def run(
        *arguments: str, card: str = CARD, failing: str = "nothing", sanitizer: bool = True, **more
    ) -> subprocess.CompletedProcess[str]:
        program("python3", PYTHON)
        program("date", DATE)
        program("timeout", TIMEOUT)
        if sanitizer:
            program("compute-sanitizer", SANITIZER)
        if "smi" in more:
            program("nvidia-smi", f"#!/bin/sh\necho '{more.pop('smi')}'\n")
        environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "RESULTS": str(results),
            "PYTHON": str(programs / "python3"),
            "CARD": card,
            "FAILING": failing,
            "HANGING": "nothing",
            "TICK": "0",
            **more,
        }
        return subprocess.run(
            ["sh", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True
        )

    run.results = results
    return run


def begun(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Stages whose beginning was announced, with or without the time."""
    return re.findall(r"^== (?:\d+ s: )?(.*)$", done.stdout, re.MULTILINE)


def test_every_stage_runs_in_its_order(machine):
    done = machine()
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = sorted(STAGES, key=lambda name: (name != "every op on Triton", STAGES.index(name)))
    assert begun(done) == wanted
    assert done.stdout.endswith("all that could run passed\n")
    # What takes longer than it is worth here waits for --all.
    assert "bench_" not in done.stdout and "initcheck" not in done.stdout


def test_results_carry_the_name_of_the_card(machine):
    done = machine()
    for stage in ("every_op-triton", "every_op-cuda", "bandwidth-cuda", "step_times"):
        assert f"--json {machine.results}/{stage}-nvidia-h100-80gb-hbm3.json" in done.stdout
    assert (machine.results / "build-nvidia-h100-80gb-hbm3.log").exists()


def test_sanitizers_look_at_our_kernels_alone(machine):
    machine("--all")
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        log = (machine.results / f"sanitizer-{tool}-nvidia-h100-80gb-hbm3.log").read_text()
        assert log.startswith(f"sanitizer: --tool {tool} --error-exitcode 9 ")
        # What is initialised by PyTorch's kernels has to be seen.
        assert ("--kernel-name kns=synq" in log) is (tool != "initcheck")
        assert "ran: -m benchmarks.every_op --device cuda --backend cuda" in log


def test_what_a_sanitizer_finds_is_shown(machine):
    done = machine(failing="*--backend cuda")
    assert done.returncode == 1
    tools = [f"compute-sanitizer {tool}" for tool in ("memcheck", "racecheck", "synccheck")]
    assert done.stdout.endswith(f"failed: {'; '.join(tools)}\n")
    assert done.stdout.count("sanitizer: --tool") == 3


def test_without_the_sanitizer_that_is_said(machine):
    done = machine(sanitizer=False)
    assert done.returncode == 0
    assert "skipped: compute-sanitizer (not found on PATH)" in done.stdout


@pytest.mark.parametrize(
    ("failing", "named"),
    [
        ("*_C.cuda_version*", "build with CUDA"),
        ("*every_op*--backend triton*", "every op on Triton"),
        ("*every_op*--backend cuda --capture*", "every op on CUDA"),
        ("*bandwidth*--backend cuda*", "bandwidth on CUDA"),
        ("*test_replay_cuda.py --junitxml*", "recordings"),
        ("*cuda and not slow*", "CUDA tests"),
        ("*step_times*", "whole steps"),
    ],
)
def test_a_stage_that_fails_is_named_and_stops_nothing(machine, failing, named):
    done = machine(failing=failing)
    assert done.returncode == 1
    assert done.stdout.endswith(f"failed: {named}\n")
    assert len(begun(done)) == len(STAGES)


def test_where_everything_fails_the_check_fails(machine):
    done = machine(failing="*")
    assert done.returncode == 1
    *_, last = done.stdout.splitlines()
    assert all(stage in last for stage in STAGES)


def test_a_stage_that_hangs_is_ended_and_named(machine):
    done = machine(HANGING="*bandwidth --backend cuda*")
    assert done.returncode == 1
    assert done.stdout.endswith("failed: bandwidth on CUDA (ended after 60 s)\n")
    assert len(begun(done)) == len(STAGES)


def test_what_the_limit_leaves_no_time_for_is_not_reached(machine):
    # Each stage is asked for ten seconds after the one before it.
    done = machine(HANGING="*bandwidth --backend cuda*", TICK="10", LIMIT="60")
    assert done.returncode == 1
    wanted = ["bandwidth on CUDA (ended after 30 s)"]
    wanted += [f"{stage} (not reached)" for stage in STAGES[6:]]
    assert done.stdout.endswith(f"failed: {'; '.join(wanted)}\n")
    assert begun(done) == ["every op on Triton", "build with CUDA", *STAGES[2:6]]
    # The default is eight minutes.
    assert machine(TICK="90").stdout.count("not reached") == len(STAGES) - 6


def test_without_a_gpu_each_stage_is_skipped_by_name(machine):
    done = machine(card="")
    assert done.returncode == 77
    skipped = [line for line in done.stdout.splitlines() if line.startswith("skipped: ")]
    assert done.stdout.count("\n") == len(skipped) == len(STAGES) - 2
    assert all("torch finds no CUDA device" in line for line in skipped)
    names = {re.sub("(sanitizer) .*", r"\1", stage) for stage in STAGES}
    assert {line.removeprefix("skipped: ").partition(" (")[0] for line in skipped} == names


def test_a_gpu_that_torch_does_not_find_is_a_failure(machine):
    done = machine(card="", smi="GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)")
    assert done.returncode == 1 and "nvidia-smi finds a GPU but torch does not" in done.stdout
    assert machine(card="", smi="No devices were found").returncode == 77


@pytest.mark.parametrize("given", [{"PYTHON": "/no/such/python"}, {"NO_TORCH": "1"}])
def test_a_python_that_cannot_be_asked_is_a_failure(machine, given):
    done = machine(**given)
    assert done.returncode == 1 and "cannot import torch" in done.stdout


def test_python3_is_the_default():
    assert "python=${PYTHON:-python3}" in SCRIPT.read_text()


def test_unknown_options_are_refused(machine):
    done = machine("--everything")
    assert done.returncode == 1 and "usage: " in done.stderr


def test_everything_on_request(machine):
    machine.results.mkdir()
    (machine.results / "fake_quantize-cuda.json").touch()
    done = machine("--all", failing="*benchmarks.targets*")
    assert done.returncode == 1 and done.stdout.endswith("failed: targets\n")
    assert begun(done)[: len(STAGES)] == begun(machine())
    assert "-m cuda tests" in done.stdout
    # Beside the other results, not over the tree's own table.
    shapes = f"{machine.results}/block_shapes-nvidia-h100-80gb-hbm3.json"
    assert f"ran: -m benchmarks.block_shapes --output {shapes}" in done.stdout
    for suite in (ROOT / "benchmarks").glob("bench_*.py"):
        assert f"ran: -m pytest benchmarks/{suite.name}" in done.stdout
    for batch in (16, 256):
        assert f"--model resnet18 --batch {batch} --write-results" in done.stdout
    assert "fake_quantize-cuda.json" in done.stdout.partition("ran: -m benchmarks.targets")[2]


def test_the_tree_is_left_as_it_was(machine):
    before = os.listdir(ROOT / "synq_fast")
    machine()
    assert os.listdir(ROOT / "synq_fast") == before
