import os

import pytest
import torch
from safetensors.torch import save_file

from synq_fast.bank.images import BankFolder, ImageBank, sample_of
from synq_fast.errors import DataError, RunFolderError
from synq_fast.storage import files
from tests.tiny import tiny_images, tiny_labels


def shard(seed: int = 1, count: int = 4) -> ImageBank:
    return ImageBank(tiny_images(count, seed), tiny_labels(count, seed))


def test_shard_comes_back_bit_for_bit(tmp_path):
    folder = BankFolder(tmp_path / "new" / "bank", "print")
    assert folder.read(0) is None
    written = shard()
    folder.write(0, written)
    found = BankFolder(tmp_path / "new" / "bank", "print").read(0)
    assert torch.equal(found.images, written.images)
    assert torch.equal(found.labels, written.labels)
    assert len(found) == 4
    assert folder.read(1) is None


def test_written_shard_is_given_back_as_it_was_written(tmp_path):
    folder = BankFolder(tmp_path, "print")
    written = folder.write(0, shard())
    assert torch.equal(written.images, shard().images)
    assert written.images.data_ptr() != shard().images.data_ptr()
    images = tiny_images(4).contiguous(memory_format=torch.channels_last)
    assert torch.equal(folder.write(1, ImageBank(images, tiny_labels(4))).images, images)


def test_take_gives_images_and_labels_of_the_numbers():
    bank = shard(count=5)
    chosen = torch.tensor([4, 0, 4])
    images, labels = bank.take(chosen)
    assert torch.equal(images, bank.images[[4, 0, 4]])
    assert torch.equal(labels, bank.labels[[4, 0, 4]])
    assert bank.device == torch.device("cpu") and not bank.streamed


def test_large_finite_values_are_no_infinity():
    images = torch.full((70, 1, 2, 2), 3e38)  # their sum is one
    assert len(ImageBank(images, torch.zeros(70).long())) == 70
    images[66, 0, 1, 1] = torch.inf
    with pytest.raises(DataError, match=r"1 of 70 .*number 66"):
        ImageBank(images, torch.zeros(70).long())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_image_that_is_not_finite_is_refused_by_number(bad):
    images = tiny_images(4)
    images[2, 0, 3, 3] = bad
    with pytest.raises(DataError, match=r"1 of 4 synthetic images .*number 2"):
        ImageBank(images, tiny_labels(4))


def test_images_and_labels_must_agree():
    with pytest.raises(DataError, match="4 images but 3 labels"):
        ImageBank(tiny_images(4), tiny_labels(3))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def _empty(path):
    path.write_bytes(b"")


def _text(path):
    path.write_text("not a tensor file")


def _not_finite(path):
    images = tiny_images(4)
    images[1] = torch.nan
    save_file({"images": images, "labels": tiny_labels(4)}, path)


def _without_labels(path):
    save_file({"images": tiny_images(4)}, path)


@pytest.mark.parametrize("damage", [_truncate, _empty, _text, _not_finite, _without_labels])
def test_damaged_shard_is_named_and_the_others_stay(tmp_path, damage):
    folder = BankFolder(tmp_path, "print")
    for index in range(2):
        folder.write(index, shard(index + 1))
    path = tmp_path / "shard-00000.safetensors"
    damage(path)
    with pytest.raises(DataError, match=r"shard-00000\.safetensors is damaged .*delete this file"):
        folder.read(0)
    assert torch.equal(folder.read(1).images, tiny_images(4, 2))
    path.unlink()
    assert folder.read(0) is None


def test_images_of_another_fingerprint_are_not_mixed_in(tmp_path):
    BankFolder(tmp_path, "one").write(0, shard())
    with pytest.raises(RunFolderError, match="another teacher, seed or synthesis recipe"):
        BankFolder(tmp_path, "two")
    assert BankFolder(tmp_path, "one").read(0) is not None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_damaged_manifest_is_named(tmp_path, text):
    BankFolder(tmp_path, "one")
    (tmp_path / "bank.json").write_text(text)
    with pytest.raises(DataError, match=r"bank\.json is damaged"):
        BankFolder(tmp_path, "one")


def test_kill_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.safetensors"
    files.write_tensors(path, {"x": torch.zeros(3)})
    before = path.read_bytes()

    def killed(descriptor):
        os.ftruncate(descriptor, 10)
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        files.write_tensors(path, {"x": torch.ones(3)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["file.safetensors"]


def test_what_a_killed_process_left_is_not_read(tmp_path):
    folder = BankFolder(tmp_path, "print")
    (tmp_path / "shard-00000.123.tmp").write_bytes(b"half")
    assert folder.read(0) is None
    folder.write(0, shard())
    assert len(folder.read(0)) == 4


def test_a_sample_is_from_all_over_a_folder(tmp_path):
    assert sample_of(tmp_path, 4) is None
    folder = BankFolder(tmp_path, "print")
    images, labels = torch.randn(10, 1, 2, 2), torch.arange(10)
    folder.write(0, ImageBank(images[:6], labels[:6]))
    folder.write(1, ImageBank(images[6:], labels[6:]))
    (tmp_path / "shard-00002.partial.safetensors").write_text("unfinished")
    sample, total = sample_of(tmp_path, 5)
    assert total == 10 and sample.labels.tolist() == [0, 2, 4, 6, 8]
    assert torch.equal(sample.images, images[::2])
    assert sample_of(tmp_path, 99)[0].labels.tolist() == list(range(10))
    path = tmp_path / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(DataError, match="damaged"):
        sample_of(tmp_path, 5)
