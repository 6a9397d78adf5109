import subprocess
import sys
from pathlib import Path

import pytest
import torch

from synq_fast.bank.images import BankFolder, ImageBank
from synq_fast.bank.streamed import StreamedBank
from tests.tiny import tiny_images, tiny_labels

CPU = torch.device("cpu")
COUNTS = (3, 1, 5)


def joined() -> ImageBank:
    return ImageBank(
        torch.cat([tiny_images(count, seed) for seed, count in enumerate(COUNTS)]),
        torch.cat([tiny_labels(count, seed) for seed, count in enumerate(COUNTS)]),
    )


def streamed(folder: Path, device: torch.device = CPU) -> StreamedBank:
    store = BankFolder(folder, "print")
    shards = [
        store.write(seed, ImageBank(tiny_images(count, seed), tiny_labels(count, seed)))
        for seed, count in enumerate(COUNTS)
    ]
    return StreamedBank(shards, device)


@pytest.mark.parametrize("chosen", [range(9), [8, 2, 3, 0, 2, 4], [3]])
def test_takes_what_the_bank_in_memory_takes(tmp_path, chosen):
    chosen = torch.tensor(list(chosen), dtype=torch.int64)
    images, labels = streamed(tmp_path).take(chosen)
    expected = joined().take(chosen)
    assert torch.equal(images, expected[0]) and torch.equal(labels, expected[1])


def test_length_labels_and_device(tmp_path):
    bank = streamed(tmp_path)
    assert len(bank) == 9 and bank.streamed and bank.device == CPU
    assert torch.equal(bank.labels, joined().labels)


def test_number_beyond_the_bank(tmp_path):
    with pytest.raises(IndexError):
        streamed(tmp_path).take(torch.tensor([0, 9]))


def test_batches_are_the_callers_own(tmp_path):
    bank = streamed(tmp_path)
    images, _ = bank.take(torch.tensor([0]))
    images.fill_(7)
    assert torch.equal(bank.take(torch.tensor([0]))[0], tiny_images(3, 0)[:1])


def test_goes_on_when_a_shard_is_deleted(tmp_path):
    bank = streamed(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    assert torch.equal(bank.take(torch.arange(9))[0], joined().images)


@pytest.mark.cuda
def test_on_a_gpu(tmp_path):
    device = torch.device("cuda", 0)
    images, labels = streamed(tmp_path, device).take(torch.arange(9))
    assert images.device == labels.device == device
    assert torch.equal(images.cpu(), joined().images)


MEMORY = """
import sys
from pathlib import Path
import torch
from synq_fast.bank.images import BankFolder
from synq_fast.bank.streamed import StreamedBank

def own():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))

before = own()
store = BankFolder(Path(sys.argv[1]), "print")
bank = StreamedBank([store.read(index) for index in range(6)], torch.device("cpu"))
for part in torch.randperm(len(bank)).split(8):
    bank.take(part)
print(1024 * (own() - before))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_opening_and_reading_all_takes_no_memory_of_its_own(tmp_path):
    store = BankFolder(tmp_path, "print")
    shard = ImageBank(torch.ones(64, 3, 128, 128), torch.arange(64))  # 12.6 MB
    for index in range(6):
        store.write(index, shard)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 15e6  # of 75 MB
