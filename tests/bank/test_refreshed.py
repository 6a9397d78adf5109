"""Batches that change their images in rounds."""

import pytest
import torch

from synq_fast.bank.batches import BatchSource, Filter
from synq_fast.bank.images import ImageBank
from synq_fast.bank.refreshed import RefreshedBatches

NONE = Filter("none")


class Source:
    """Banks of images whose every pixel is the number of the round; notes what is asked of it."""

    def __init__(self):
        self.asked, self.closed = [], []

    def batches(self, number: int, found: bool = False) -> BatchSource:
        self.asked.append((number, found))
        bank = ImageBank(torch.full((6, 1, 2, 2), float(number)), torch.arange(6))
        batches = BatchSource(bank, 2, (1.0, 1.0), NONE, 0)
        batches.close = lambda: self.closed.append(number)
        return batches

    def refreshed(self, every: int = 3) -> RefreshedBatches:
        return RefreshedBatches(self.batches(0), every, self.batches)


def test_a_round_begins_before_its_first_step():
    source = Source()
    batches = source.refreshed()
    seen = [float(batches(step)[0].unique()) for step in range(8)]
    assert seen == [0, 0, 0, 1, 1, 1, 2, 2]
    assert source.asked == [(0, False), (1, False), (2, False)] and source.closed == [0, 1]
    batches.close()
    assert source.closed == [0, 1, 2]


def test_what_a_step_draws_is_its_own_in_any_round():
    batches = Source().refreshed()
    plain = Source().batches(0)
    for step in range(7):
        assert torch.equal(batches(step)[1], plain(step)[1])


@pytest.mark.parametrize("done", range(8))
def test_goes_on_in_the_round_where_it_was(done):
    """The last round is found; one whose first step is still to come is made."""
    first = Source().refreshed()
    for step in range(done):
        first(step)
    source = Source()
    again = source.refreshed()
    again.restore(first.state())
    rounds = [float(again(step)[0].unique()) for step in range(done, 8)]
    assert rounds == [step // 3 for step in range(done, 8)]
    last = max(0, done - 1) // 3
    found = [(last, True)] if last else []
    assert source.asked == [(0, False), *found, *((n, False) for n in range(last + 1, 3))]
