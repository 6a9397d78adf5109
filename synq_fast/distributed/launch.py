"""Joining the processes that torchrun started, or a group that the caller has."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist

from synq_fast.distributed.meeting import meet
from synq_fast.distributed.ranks import ALONE, GroupRanks, Ranks
from synq_fast.errors import DistributedError
from synq_fast.runtime.first_process import world_size

_TIMEOUT = timedelta(minutes=10)
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def restarted() -> bool:
    """Whether torchrun has started this process again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The ranks of this run while the block runs.

    The caller's process group is used where there is one; under torchrun one is made, gloo for
    CPUs and nccl for GPUs, and destroyed in the end; otherwise the process is alone. A GPU is
    PyTorch's current device inside the block.

    Raises:
        DistributedError: the processes cannot meet or do not fit together.
    """
    given = dist.is_available() and dist.is_initialized()
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        if not given and world_size() == 1:
            yield ALONE
            return
        if not given:
            _make_group(device)
        failed = True
        ranks: GroupRanks | None = None
        try:
            ranks = GroupRanks(device)
            _check_devices(ranks, alone_on_gpu=not given)
            yield ranks
            failed = False
        finally:
            if ranks is not None:
                ranks.close()
            # nccl would wait here for peers that cannot come; the end of this process is enough.
            if not given and not (failed and device.type == "cuda"):
                dist.destroy_process_group()


def _make_group(device: torch.device) -> None:
    if not dist.is_available():
        raise DistributedError(
            "this torch was built without torch.distributed; start one process, or install a "
            "torch that has it"
        )
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing:
        raise DistributedError(
            f"WORLD_SIZE={world_size()} says that this is one of several processes, but "
            f"{', '.join(missing)} is not set; start the command with torchrun, or unset WORLD_SIZE"
        )
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # Missing in a torch that was built without them.
    from torch.distributed.distributed_c10d import PrefixStore

    try:
        store, rank, size = _rendezvous()
        store = PrefixStore("synq_fast", store)
        store = PrefixStore(meet(store, rank, size, _TIMEOUT), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    except (RuntimeError, ValueError, TimeoutError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise DistributedError(
            f"the {world_size()} processes of this run did not meet at {where} within "
            f"{_TIMEOUT.seconds // 60} minutes: {str(error).splitlines()[0]}"
        ) from error


@cache
def _rendezvous() -> tuple[Any, int, int]:
    """Where the processes meet, once per process: rank 0 may have to serve a port."""
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=_TIMEOUT))
    return store, rank, size


def _check_devices(ranks: GroupRanks, alone_on_gpu: bool) -> None:
    places = ranks.collect((socket.gethostname(), str(ranks.device)))
    kinds = sorted({device.partition(":")[0] for _, device in places})
    if len(kinds) > 1:
        raise DistributedError(
            f"some ranks would work on {kinds[0]} and others on {kinds[1]}; choose one for all "
            f"with --device (device=)"
        )
    twice = [place for place in places if places.count(place) > 1]
    if alone_on_gpu and kinds == ["cuda"] and twice:
        host, device = twice[0]
        raise DistributedError(
            f"several ranks on {host} would share {device}; leave out --device (device=), so that "
            f"each takes the GPU of its LOCAL_RANK"
        )
