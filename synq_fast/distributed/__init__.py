"""Several processes on one run: joining them, and what they tell each other."""

from synq_fast.distributed.launch import joined, restarted
from synq_fast.distributed.ranks import ALONE, GroupRanks, Ranks
from synq_fast.runtime.first_process import is_first_process

__all__ = ["ALONE", "GroupRanks", "Ranks", "is_first_process", "joined", "restarted"]
