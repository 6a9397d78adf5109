"""Kills runs at random moments and before every kind of file operation, and resumes each.

``python -m tests.faults.kills FOLDER SEED`` prints one JSON line per scenario: where the kills
landed, how many steps the whole took more than an undisturbed run, and how its result differs.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from synq_fast.files import read_tensors
from tests.faults.victim import PHASES, Progress, start
from tests.tiny import run

KILLS_PER_PHASE, ATTEMPTS, CHAINS, KILLS_PER_CHAIN = 6, 12, 2, 4


def finish(child: int) -> bool:
    """Wait for a child; says whether it came to its end.

    Raises:
        RuntimeError: it failed by itself.
    """
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status > 0:
        raise RuntimeError("the run failed by itself; see errors.txt")
    return status == 0


def kill_in(phase: str, within: float, folder: Path, progress: Progress) -> tuple[str, bool]:
    """Kill a run a random moment after it has come to a phase.

    Returns:
        The phase in which the kill landed, and whether the run had ended before.
    """
    delay = random.uniform(0, within)
    child = start(folder, progress)
    while (
        progress.phase != phase
        and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    ):
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGSTOP)
    landed = progress.phase
    os.kill(child, signal.SIGKILL)
    return landed, finish(child)


def results(folder: Path) -> dict[str, object]:
    """What a finished run leaves, in a form that two runs can compare."""
    found: dict[str, object] = {"log.jsonl": (folder / "log.jsonl").read_text()}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors" and "previous" not in path.name:
            tensors, _ = read_tensors(path)
            found |= {f"{path.relative_to(folder)}: {name}": t for name, t in tensors.items()}
        elif path.suffix == ".tmp" or "partial" in path.name:
            found[path.name] = None
    return found


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Names of what is not the same bit for bit."""
    different = sorted(one.keys() ^ other.keys())
    for name in sorted(one.keys() & other.keys()):
        a, b = one[name], other[name]
        equal = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        if not equal:
            different.append(name)
    return different


def main(root: Path, seed: int) -> None:
    """Run every scenario."""
    torch.set_num_threads(1)
    random.seed(seed)
    run(output=root / "warm")  # what torch and fx prepare once is shared by all children
    gc.disable()  # a collection would copy the parent's memory into each child
    progress = Progress()
    began = time.monotonic()
    assert finish(start(root / "undisturbed", progress))
    whole = time.monotonic() - began
    tally: Counter[str] = Counter()
    expected, usual = results(root / "undisturbed"), progress.steps
    events = (root / "events.txt").read_text().splitlines()

    def tell(name: str, folder: Path, landed: list[str], steps: dict[str, int]) -> None:
        again = {phase: count - usual[phase] for phase, count in steps.items()}
        row = {"kind": name, "landed": landed, "again": again}
        print(json.dumps({**row, "different": differences(expected, results(folder))}))

    def scenario(name: str, number: int, targets: list[tuple[str, float] | int]) -> None:
        folder = root / f"{name}-{number}"
        landed, steps = [], dict.fromkeys(usual, 0)
        for target in targets:
            if isinstance(target, int):
                ended, where = finish(start(folder, progress, target)), events[target]
            else:
                where, ended = kill_in(*target, folder, progress)
            for phase, count in progress.steps.items():
                steps[phase] += count
            if ended:
                break
            landed.append(where)
            tally[where] += 1
        assert finish(start(folder, progress))
        for phase, count in progress.steps.items():
            steps[phase] += count
        tell(name, folder, landed, steps)

    for place, phase in enumerate((*PHASES[1:], "saving")):
        # On a busy machine a kill may come late, and land in another phase.
        for number in range(ATTEMPTS):
            if tally[phase] < KILLS_PER_PHASE:
                scenario("random", ATTEMPTS * place + number, [(phase, 0.02)])
    for number in range(CHAINS):
        scenario("chain", number, [("", whole)] * KILLS_PER_CHAIN)
    kinds: dict[str, list[int]] = {}
    for place, text in enumerate(events):
        kinds.setdefault(re.sub(r"\d+", "", text), []).append(place)
    for number, places in enumerate(kinds.values()):
        # Not the first of its kind alone: a late one finds other files beside it.
        scenario("event", number, [random.choice(places)])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
