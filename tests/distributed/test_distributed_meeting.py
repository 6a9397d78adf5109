import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from synq_fast.distributed.meeting import meet

SECONDS = timedelta(seconds=20)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_ranks_agree_on_a_name_that_was_never_used(late):
    """Each round, as after a restart, finds what the round before left in the store."""
    store, names = dist.HashStore(), set()

    def arrive(rank: int) -> str:
        if rank == late:
            time.sleep(0.1)
        return meet(store, rank, 3, SECONDS)

    with ThreadPoolExecutor(3) as ranks:
        for _ in range(3):
            agreed = set(ranks.map(arrive, range(3)))
            assert len(agreed) == 1
            names |= agreed
    assert len(names) == 3


def test_round_that_broke_off_is_no_obstacle():
    """Rank 1 died before it signed; rank 0 had drawn a name, rank 2 had signed under it."""
    store, short = dist.HashStore(), timedelta(seconds=0.2)
    with ThreadPoolExecutor(3) as ranks:
        broken = [ranks.submit(meet, store, rank, 3, short) for rank in (0, 2)]
        assert all(isinstance(attempt.exception(), TimeoutError) for attempt in broken)
        assert len(set(ranks.map(lambda rank: meet(store, rank, 3, SECONDS), range(3)))) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_never_come(rank):
    with pytest.raises(TimeoutError, match="never came"):
        meet(dist.HashStore(), rank, 2, timedelta(seconds=0.1))
