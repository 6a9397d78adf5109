"""The processes that work on one run, and what they tell each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from synq_fast.errors import DistributedError, LostRankError

T = TypeVar("T")
# Ranks wait for the slowest one's images and for rank 0's evaluation; a process that has died is
# noticed at once whatever the limit, because its connections close.
_PATIENCE = timedelta(days=2)


class Ranks:
    """One process alone: nobody to wait for and nobody to share with."""

    rank = 0
    size = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when every rank has come here."""

    def collect(self, value: T) -> list[T]:
        """Every rank's value, in order of rank."""
        return [value]

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on rank 0, on every rank; the others do not call it."""
        return make()

    @contextmanager
    def first(self) -> Iterator[None]:
        """Run the block on rank 0, then on the others."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of work that is dealt out in turn."""
        return items[self.rank :: self.size]

    def slice_of(self, count: int) -> slice:
        """This rank's consecutive part of ``count`` items; parts differ by one item at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def share(self, made: Mapping[int, Sequence[Tensor]], count: int) -> Iterator[list[Tensor]]:
        """The items 0 to ``count - 1`` on every rank, one by one, each made by at least one rank.

        Args:
            made: tensors by item, of the items that this rank has.
            count: number of items.
        """
        for index in range(count):
            yield list(made[index])

    def add(self, values: Tensor) -> None:
        """Replace ``values`` by their sum over the ranks."""

    def widen(self, low: Tensor, high: Tensor) -> None:
        """Replace ``low`` and ``high`` by their minimum and maximum over the ranks."""

    def check_same(self, what: Mapping[str, str]) -> None:
        """Compare what decides the run.

        Raises:
            DistributedError: a rank has another value than rank 0; names rank and value.
        """
        first, *others = self.collect(dict(what))
        for rank, found in enumerate(others, 1):
            different = [key for key, value in first.items() if found.get(key) != value]
            if different:
                raise DistributedError(
                    f"rank {rank} was started with another {', '.join(different)} than rank 0; "
                    f"start every process with the same command, files and versions"
                )

    def check_equal(self, module: nn.Module, when: str) -> None:
        """Compare the weights and ranges of all ranks by a checksum of their bits.

        Raises:
            DistributedError: they differ; names the first tensor and ``when``.
        """


ALONE = Ranks()


class GroupRanks(Ranks):
    """The ranks of torch's default process group.

    Tensors of the work itself are reduced in the default group, on ``device``; everything that may
    have to wait for long goes through a gloo group of its own.
    """

    def __init__(self, device: torch.device) -> None:
        """Every rank makes this at the same point."""
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device
        with _explained():
            self._patient: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def close(self) -> None:
        """Leave; ranks that still wait for this one get an error."""
        dist.destroy_process_group(self._patient)
        self._patient = None

    def wait(self) -> None:
        """Return when every rank has come here."""
        with _explained():
            dist.barrier(self._patient)

    def collect(self, value: T) -> list[T]:
        """Every rank's value, in order of rank."""
        values: list[Any] = [None] * self.size
        with _explained():
            dist.all_gather_object(values, value, self._patient)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on rank 0, on every rank; the others do not call it."""
        values: list[Any] = [make() if self.is_first else None]
        with _explained():
            dist.broadcast_object_list(values, 0, self._patient)
        value: T = values[0]
        return value

    def share(self, made: Mapping[int, Sequence[Tensor]], count: int) -> Iterator[list[Tensor]]:
        """The items 0 to ``count - 1`` on every rank, on the CPU; see ``Ranks.share``."""
        forms = self.collect({i: [(t.shape, t.dtype) for t in item] for i, item in made.items()})
        for index in range(count):
            holders = [rank for rank, form in enumerate(forms) if index in form]
            if index in made:
                item = [tensor.cpu().contiguous() for tensor in made[index]]
            else:
                form = forms[holders[0]][index]
                item = [torch.empty(shape, dtype=dtype, device="cpu") for shape, dtype in form]
            if len(holders) < self.size:
                with _explained():
                    for tensor in item:
                        dist.broadcast(tensor, holders[0], self._patient)
            yield item

    def add(self, values: Tensor) -> None:
        """Replace ``values`` by their sum over the ranks."""
        with _explained():
            dist.all_reduce(values)

    def widen(self, low: Tensor, high: Tensor) -> None:
        """Replace ``low`` and ``high`` by their minimum and maximum over the ranks."""
        with _explained():
            dist.all_reduce(low, dist.ReduceOp.MIN)
            dist.all_reduce(high, dist.ReduceOp.MAX)

    def check_equal(self, module: nn.Module, when: str) -> None:
        """Compare the weights and ranges of all ranks; see ``Ranks.check_equal``."""
        state = {n: v for n, v in module.state_dict().items() if v.dtype == torch.float32}
        low = torch.stack([v.view(torch.int32).sum(dtype=torch.int64) for v in state.values()])
        high = low.clone()
        self.widen(low, high)
        equal = (low == high).tolist()
        different = [name for name, same in zip(state, equal, strict=True) if not same]
        if different:
            raise DistributedError(
                f'the ranks no longer hold the same weights {when} (first: "{different[0]}"): one '
                f"computes differently from the others. Use equal devices and versions; the last "
                f"good checkpoint is kept"
            )


@contextmanager
def _explained() -> Iterator[None]:
    """Say in plain words that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise LostRankError(
            f"another process of this run has stopped or does not answer; its own message says "
            f"why, and finished work is kept ({str(error).splitlines()[0]})"
        ) from error
