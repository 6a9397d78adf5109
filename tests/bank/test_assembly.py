import itertools

import pytest
import torch

from synq_fast.bank import assembly
from synq_fast.bank.assembly import BankAssembly, streams
from synq_fast.bank.images import BankFolder, ImageBank
from synq_fast.errors import RecipeError, SynqFastError
from tests.tiny import SHAPE, tiny_images, tiny_labels

CPU = torch.device("cpu")
COUNTS = (3, 3, 2)


def shard(index: int) -> ImageBank:
    return ImageBank(tiny_images(COUNTS[index], index), tiny_labels(COUNTS[index], index))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("streamed", [False, True])
def test_shards_are_joined_in_order_whenever_they_come(tmp_path, order, streamed):
    store = BankFolder(tmp_path, "print")
    joining = BankAssembly(COUNTS, SHAPE, CPU, streamed=streamed)
    for index in order:
        joining.put(index, store.write(index, shard(index)))
    bank = joining.bank()
    assert bank.streamed == streamed and len(bank) == 8
    images, labels = bank.take(torch.arange(8))
    assert torch.equal(images, torch.cat([tiny_images(n, i) for i, n in enumerate(COUNTS)]))
    assert torch.equal(labels, torch.cat([tiny_labels(n, i) for i, n in enumerate(COUNTS)]))


def test_bank_in_memory_is_one_channels_last_tensor():
    joining = BankAssembly(COUNTS[:1], SHAPE, CPU, streamed=False)
    joining.put(0, shard(0))
    bank = joining.bank()
    assert isinstance(bank, ImageBank)
    assert bank.images.is_contiguous(memory_format=torch.channels_last)


def test_missing_shard_is_no_bank(tmp_path):
    joining = BankAssembly(COUNTS, SHAPE, CPU, streamed=True)
    joining.put(1, shard(1))
    with pytest.raises(KeyError):
        joining.bank()


def test_more_images_than_any_memory_holds():
    joining = BankAssembly([2**45], SHAPE, CPU, streamed=False)
    with pytest.raises(SynqFastError, match=r'no memory on cpu .*finetune\.bank = "stream"'):
        joining.put(0, shard(0))


def test_placement(tmp_path, monkeypatch):
    store = BankFolder(tmp_path, "print")
    monkeypatch.setattr(assembly, "free_memory", lambda device: 1000)
    assert not streams("memory", 10**9, CPU, store)
    assert streams("stream", 1, CPU, store)
    assert not streams("auto", 500, CPU, store)
    assert streams("auto", 501, CPU, store)
    assert not streams("auto", 10**9, CPU, None)
    with pytest.raises(RecipeError, match="name a folder"):
        streams("stream", 1, CPU, None)
