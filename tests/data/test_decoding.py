"""Image files in worker processes: the same pixels, and errors that name the file."""

import gc
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from synq_fast.data import decoding, load_dataset
from synq_fast.data.decoding import ImageFiles, decoded_batches, default_workers, worker_deaths
from synq_fast.errors import DataError
from synq_fast.models import Teacher

SHAPE = (3, 12, 16)


def make_teacher():
    return Teacher(nn.Identity(), "t", SHAPE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 3)


@pytest.fixture
def folder(tmp_path):
    """Eleven pictures in three classes, some to be resized."""
    rng = np.random.default_rng(0)
    for i in range(11):
        size = (12, 16, 3) if i % 2 else (20 + i, 30, 3)
        path = tmp_path / str(i % 3) / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
    return tmp_path


def files(folder):
    return ImageFiles("pictures", sorted(folder.rglob("*.png")), SHAPE)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_normalised_pixels_in_order(folder, workers):
    data, teacher = load_dataset(folder, make_teacher()), make_teacher()
    batches = list(data.batches(4, workers=workers))
    assert [len(labels) for _, labels in batches] == [4, 4, 3]
    images = torch.cat([images for images, _ in batches])
    # The formula is written out: a change of normalisation or order must not hide in both.
    mean = torch.tensor(teacher.mean).view(-1, 1, 1)
    std = torch.tensor(teacher.std).view(-1, 1, 1)
    expected = torch.stack([(data.pixels([i])[0] - mean) / std for i in range(11)])
    assert torch.equal(images, expected)
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.labels)


def test_stored_images_are_bytes(folder):
    data = load_dataset(folder, make_teacher())
    stored = list(data.stored(8, workers=0, pinned=False))
    assert [images.dtype for images in stored] == [torch.uint8] * 2
    assert stored[0].shape == (8, *SHAPE)
    assert torch.equal(stored[0].float() / 255, data.pixels(range(8)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_broken_image_is_named(folder, workers, content):
    bad = folder / "1" / "07.png"
    bad.write_bytes(bad.read_bytes()[:300] if content is None else content)
    data = load_dataset(folder, make_teacher())
    with pytest.raises(DataError, match=r"1/07\.png is not a readable image") as caught:
        list(data.batches(2, workers=workers))
    assert "Traceback" not in str(caught.value)


def test_decoder_that_fails_in_its_own_way(folder, monkeypatch):
    def bomb(*args):
        raise Image.DecompressionBombError("too many pixels")

    monkeypatch.setattr(Image, "open", bomb)
    with pytest.raises(DataError, match=r"\.png is not a readable image \(too many pixels\)"):
        files(folder).decode(0)


class Killed(ImageFiles):
    def __getitem__(self, index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.fixture
def no_collection():
    """PyTorch raises wherever the process is when it hears of a death.

    Inside a callback of the collector, such as hypothesis has, the error would only be printed.
    """
    gc.disable()
    yield
    gc.enable()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("pause", [0, 0.5])  # with one, batches are fetched from a dead process
def test_killed_worker_is_explained(folder, pause, no_collection):
    killed = Killed("pictures", files(folder).paths, SHAPE)
    with (
        pytest.raises(DataError, match=r"a process that decodes .* has ended .*workers=0"),
        worker_deaths(),
    ):
        for _ in decoded_batches(killed, 2, workers=1, pinned=False):
            time.sleep(pause)
    assert not multiprocessing.active_children()


def test_death_of_a_worker_is_explained_wherever_it_is_raised():
    with pytest.raises(DataError, match=r"killed by signal.*workers=0"), worker_deaths():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    with pytest.raises(RuntimeError, match="something else"), worker_deaths():
        raise RuntimeError("something else")


def test_random_numbers_of_the_caller_are_left_alone(folder):
    before = torch.get_rng_state()
    list(decoded_batches(files(folder), 4, workers=2, pinned=False))
    assert torch.equal(torch.get_rng_state(), before)


def many(count, shape=(3, 224, 224)):
    return ImageFiles("many", [Path("x.jpg")] * count, shape)


def test_default_workers(monkeypatch):
    monkeypatch.setattr(decoding, "_processors", lambda: 8)
    monkeypatch.setattr(decoding, "_shared_memory", lambda: 1 << 40)
    assert default_workers(many(64), 16) == 0
    assert default_workers(many(50_000), 256) == 8
    assert default_workers(many(500), 256) == 2
    monkeypatch.setattr(decoding, "_processors", lambda: 200)
    assert default_workers(many(50_000), 256) == 16


def test_default_workers_fit_into_shared_memory(monkeypatch):
    monkeypatch.setattr(decoding, "_processors", lambda: 8)
    monkeypatch.setattr(decoding, "_shared_memory", lambda: 64 << 20)  # docker's default
    assert default_workers(many(50_000), 256) == 0
    assert default_workers(many(50_000), 32) == 4
    assert default_workers(many(50_000), 1) == 8


def test_this_machine():
    assert decoding._processors() >= 1
    assert decoding._shared_memory() >= 0


@pytest.mark.cuda
def test_normalised_on_a_gpu(folder):
    data = load_dataset(folder, make_teacher())
    for workers in (0, 2):
        batches = list(data.batches(4, device="cuda", workers=workers))
        assert {(i.device.type, y.device.type) for i, y in batches} == {("cuda", "cpu")}
        expected = torch.cat([images for images, _ in data.batches(4)])
        images = torch.cat([images.cpu() for images, _ in batches])
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
