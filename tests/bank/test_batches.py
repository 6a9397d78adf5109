"""Batches from a bank in memory and from one in its files, read ahead."""

import gc
import threading
import time

import pytest
import torch

from synq_fast.bank.batches import BatchSource, Filter, filtered
from synq_fast.bank.images import BankFolder, ImageBank
from synq_fast.bank.prefetch import Prefetcher
from synq_fast.bank.streamed import StreamedBank
from synq_fast.errors import DataError
from synq_fast.reference import low_pass
from synq_fast.runtime.seeding import generator_for
from tests.tiny import tiny_images, tiny_labels

CPU = torch.device("cpu")


def banks(folder, device=CPU):
    """The same ten images in memory and in two shards."""
    store = BankFolder(folder, "print")
    shards = [store.write(i, ImageBank(tiny_images(5, i), tiny_labels(5, i))) for i in range(2)]
    joined = ImageBank(
        torch.cat([s.images for s in shards]).to(device),
        torch.cat([s.labels for s in shards]).to(device),
    )
    return joined, StreamedBank(shards, device)


def ten_images(count=10):
    return ImageBank(tiny_images(count), tiny_labels(count))


def source(bank, size=4, **options):
    return BatchSource(bank, size, (0.5, 1.0), Filter(), 3, **options)


def reading_threads():
    return [t for t in threading.enumerate() if t.name.startswith("synq-fast-batches")]


@pytest.mark.parametrize("prefetch", [0, 1, 2, 5])
@pytest.mark.parametrize("size", [1, 4, 10, 23])
def test_batches_are_bit_for_bit_those_of_a_bank_in_memory(tmp_path, prefetch, size):
    joined, streamed = banks(tmp_path)
    expected, read = source(joined, size), source(streamed, size, prefetch=prefetch)
    for step in (0, 1, 2, 3, 7, 8, 2, 0):  # in order, a gap, and back as after a resume
        for mine, other in zip(read(step), expected(step), strict=True):
            assert torch.equal(mine, other)
    read.close()


@pytest.mark.parametrize(("count", "size"), [(10, 4), (7, 7), (3, 8), (1, 5)])
def test_draw_follows_the_order_of_each_epoch(count, size):
    drawn = source(ImageBank(tiny_images(count), tiny_labels(count)), size)
    steps = 3 * count
    chosen = torch.cat([drawn.draw(step)[0] for step in range(steps)])
    epochs = [
        torch.randperm(count, generator=generator_for(3, "order", epoch))
        for epoch in range(3 * size)
    ]
    assert torch.equal(chosen, torch.cat(epochs))


def test_what_a_caller_does_to_a_draw_does_not_stay():
    drawn = source(ImageBank(tiny_images(4), tiny_labels(4)), 4)
    before = drawn.draw(0)[0].clone()
    drawn.draw(0)[0].zero_()
    assert torch.equal(drawn.draw(0)[0], before)


def test_what_was_read_makes_the_batch(tmp_path):
    for bank in banks(tmp_path):
        batches = source(bank)
        chosen, crops = batches.draw(5)
        images, labels = bank.take(chosen)
        assert torch.equal(batches.transformed(images, crops), batches(5)[0])
        assert torch.equal(labels, batches(5)[1])
        batches.close()


def test_thread_only_for_streamed_banks_and_only_until_close(tmp_path):
    joined, streamed = banks(tmp_path)
    source(joined)(0)
    source(streamed, prefetch=0)(0)
    assert not reading_threads()
    batches = source(streamed)
    batches(0)
    assert len(reading_threads()) == 1
    batches.close()
    assert not reading_threads()
    batches(1)
    assert len(reading_threads()) == 1
    time.sleep(0.1)  # until the thread has read ahead and waits
    thread = reading_threads()[0]
    del batches
    gc.collect()
    thread.join(10)
    assert not reading_threads()


def test_next_steps_are_read_while_the_caller_works():
    begun = threading.Semaphore(0)

    def read(step):
        begun.release()
        return (torch.tensor(step),)

    ahead = Prefetcher(read, CPU, depth=3)
    assert ahead(0)[0] == 0
    for _ in range(4):
        assert begun.acquire(timeout=10)
    assert not begun.acquire(timeout=0.1)
    assert ahead(1)[0] == 1
    assert begun.acquire(timeout=10) and not begun.acquire(timeout=0.1)
    ahead.close()


def test_error_of_a_step_is_raised_there_and_not_before():
    failing = {2}

    def read(step):
        if step in failing:
            raise DataError(f"the shard of step {step} is gone")
        return (torch.tensor(step),)

    ahead = Prefetcher(read, CPU)
    assert [ahead(step)[0].item() for step in (0, 1)] == [0, 1]
    with pytest.raises(DataError, match="the shard of step 2 is gone"):
        ahead(2)
    failing.clear()
    assert ahead(2)[0] == 2 and ahead(3)[0] == 3
    ahead.close()


def test_close_does_not_read_what_is_left():
    first, release, seen = threading.Event(), threading.Event(), []

    def read(step):
        seen.append(step)
        if step == 1:
            first.set()
            assert release.wait(10)
        return (torch.tensor(step),)

    ahead = Prefetcher(read, CPU, depth=4)
    ahead(0)
    assert first.wait(10)
    threading.Timer(0.1, release.set).start()
    ahead.close()
    assert seen == [0, 1]


@pytest.mark.cuda
def test_on_a_gpu_the_batches_are_the_same_and_nobody_waits(tmp_path):
    joined, streamed = banks(tmp_path, torch.device("cuda", 0))
    expected, read = source(joined), source(streamed)
    for step in range(20):
        for mine, other in zip(read(step), expected(step), strict=True):
            assert mine.device == joined.device
            assert torch.equal(mine, other)
    torch.cuda.set_sync_debug_mode("error")
    try:
        kept = [read(step) for step in range(20, 40)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step, batch in zip(range(20, 40), kept, strict=True):
        assert torch.equal(batch[0], expected(step)[0])
    read.close()


@pytest.mark.parametrize(("count", "size"), [(10, 4), (7, 7), (3, 8)])
def test_every_image_comes_once_per_epoch(count, size):
    images = torch.arange(count).float()[:, None, None, None].expand(count, 1, 4, 4)
    data = ImageBank(images.clone(), torch.arange(count))
    source = BatchSource(data, size, (1.0, 1.0), Filter(kind="none"), 3)
    steps = 3 * count
    drawn = torch.cat([source(step)[1] for step in range(steps)])
    assert len(drawn) == steps * size
    epochs = drawn[: len(drawn) // count * count].view(-1, count)
    assert all(sorted(epoch.tolist()) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) > 1
    shown, labels = source(0)
    assert torch.allclose(shown[:, 0, 0, 0], labels.float(), atol=1e-5)


def test_batch_depends_only_on_seed_and_step():
    def source(seed: int) -> BatchSource:
        return BatchSource(ten_images(), 4, (0.5, 1.0), Filter(), seed)

    first = source(0)
    late = [first(step) for step in (0, 1, 2)][2]
    torch.manual_seed(5)
    for images, labels in (source(0)(2), first(2)):
        assert torch.equal(images, late[0]) and torch.equal(labels, late[1])
    assert not torch.equal(source(1)(2)[0], late[0])


def test_every_step_crops_anew():
    source = BatchSource(ten_images(1), 1, (0.3, 0.6), Filter(kind="none"), 0)
    assert len({tuple(source(step)[0].flatten().tolist()) for step in range(6)}) == 6


def test_filter_follows_the_crop():
    source = BatchSource(ten_images(), 4, (0.5, 1.0), Filter(kind="none"), 0)
    soft = BatchSource(ten_images(), 4, (0.5, 1.0), Filter("butterworth", 2.0, 3), 0)
    expected = low_pass(source(0)[0], 2.0, kind="butterworth", order=3)
    torch.testing.assert_close(soft(0)[0], expected, rtol=0, atol=5e-6)
    images = tiny_images(2)
    assert filtered(images, Filter(kind="none")) is images
