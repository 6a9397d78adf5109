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
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from synq_fast.storage.files import read_tensors
from tests.faults.victim import PHASES, Progress, start, work

# More than the suite has time for find rarer moments.
KILLS_PER_PHASE = int(os.environ.get("SYNQ_FAST_KILLS", "6"))
ATTEMPTS, CHAINS, KILLS_PER_CHAIN = 5 * KILLS_PER_PHASE, 2, 4


def finish(child: int) -> bool:
    """Wait for a child; says whether it came to its end.

    Raises:
        RuntimeError: it failed by itself.
    """
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status > 0:
        raise RuntimeError("the run failed by itself; see errors.txt")
    return status == 0


def wait_for(phase: str, child: int, progress: Progress) -> None:
    """Return when a run has come to a phase, or to its end."""
    while progress.phase != phase:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.001)


def time_phases(child: int, progress: Progress) -> dict[str, float]:
    """How long each phase of a run takes in seconds, ``""`` the whole; waits for its end."""
    began = time.monotonic()
    entered = {}
    for phase in PHASES[1:]:
        wait_for(phase, child, progress)
        entered[phase] = time.monotonic()
    assert finish(child)
    times = [*entered.values(), time.monotonic()]
    lengths = [after - before for before, after in pairwise(times)]
    return {"": times[-1] - began, **dict(zip(entered, lengths, strict=True))}


def kill_in(
    phase: str, folder: Path, progress: Progress, lengths: dict[str, float]
) -> tuple[str, bool]:
    """Kill a run at a random moment of a phase.

    Returns:
        The phase in which the kill landed, and whether the run had ended before.
    """
    share = random.random()
    child = start(folder, progress)
    if phase == "saving":
        time.sleep(0.8 * share * lengths[""])
        wait_for(phase, child, progress)
    else:
        wait_for(phase, child, progress)
        time.sleep(0.8 * share * lengths[phase])
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
    work(root / "warm")  # what torch and fx prepare once is shared by all children
    gc.disable()  # a collection would copy the parent's memory into each child
    progress = Progress()
    lengths = time_phases(start(root / "undisturbed", progress), progress)
    tally: Counter[str] = Counter()
    expected, usual = results(root / "undisturbed"), progress.steps
    events = (root / "events.txt").read_text().splitlines()

    def tell(name: str, folder: Path, landed: list[str], steps: dict[str, int]) -> None:
        again = {phase: count - usual[phase] for phase, count in steps.items()}
        row = {"kind": name, "landed": landed, "again": again}
        print(json.dumps({**row, "different": differences(expected, results(folder))}))

    def scenario(name: str, number: int, targets: Sequence[str | int]) -> None:
        folder = root / f"{name}-{number}"
        landed, steps = [], dict.fromkeys(usual, 0)
        for target in targets:
            if isinstance(target, int):
                ended, where = finish(start(folder, progress, target)), events[target]
            else:
                where, ended = kill_in(target, folder, progress, lengths)
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
                scenario("random", ATTEMPTS * place + number, [phase])
    for number in range(CHAINS):
        scenario("chain", number, [""] * KILLS_PER_CHAIN)
    kinds: dict[str, list[int]] = {}
    for place, text in enumerate(events):
        kinds.setdefault(re.sub(r"\d+", "", text), []).append(place)
    for number, places in enumerate(kinds.values()):
        # Not the first of its kind alone: a late one finds other files beside it.
        scenario("event", number, [random.choice(places)])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
