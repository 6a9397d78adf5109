"""A name for a process group that all its ranks agree on and that no earlier group has used."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

_POLL_SECONDS = 0.02


def meet(store: Any, rank: int, size: int, timeout: timedelta) -> str:
    """Agree on a fresh name through a store that may hold what dead processes left.

    torchrun keeps one store over all restarts (pytorch issue 135712), and a process that reads the
    address of one that was killed waits for ever. Its restart count does not help: nodes count on
    their own. So rank 0 draws a name, every rank signs in under it with a mark of its own, and a
    rank goes on when rank 0 has repeated that mark, which nobody dead can do.

    Args:
        store: a store of ``torch.distributed``, the same for all ranks.
        rank: this process.
        size: number of processes.
        timeout: how long to wait for the others.

    Raises:
        TimeoutError: they did not come.
    """
    mark, deadline = uuid4().hex, time.monotonic() + timedelta.total_seconds(timeout)

    def wait() -> None:
        if time.monotonic() > deadline:
            raise TimeoutError("some of them never came")
        time.sleep(_POLL_SECONDS)

    if rank == 0:
        store.set("name", mark)
        keys = [f"{mark}/{other}" for other in range(1, size)]
        while not store.check(keys):
            wait()
        store.set(f"{mark}/all", b" ".join(store.get(key) for key in keys))
        return mark
    name = ""
    while True:
        if store.check(["name"]) and (latest := store.get("name").decode()) != name:
            name = latest
            store.set(f"{name}/{rank}", mark)
        if name and store.check([f"{name}/all"]):
            signed = store.get(f"{name}/all").decode().split()
            if signed[rank - 1] == mark:
                return name
        wait()
