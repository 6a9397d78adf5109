import os
import warnings

import pytest
import torch

from synq_fast.errors import CheckpointError, StorageError, SynqFastWarning
from synq_fast.storage.checkpoint_file import CheckpointFile
from tests.faults.disk import full_disk


def write(path, *steps) -> CheckpointFile:
    file = CheckpointFile(path, 0.0)
    for step in steps:
        file.write({"x": torch.full((3,), float(step))}, {"step": str(step)})
    return file


def read(path) -> int | None:
    found = CheckpointFile(path, 0.0).read()
    if found is None:
        return None
    tensors, texts = found
    assert tensors["x"].tolist() == [float(texts["step"])] * 3
    return int(texts["step"])


def damage(path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_last_one_is_read_without_a_word(tmp_path):
    path = tmp_path / "c.safetensors"
    assert read(path) is None
    write(path, 1, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(path) == 3
    assert sorted(os.listdir(tmp_path)) == ["c.previous.safetensors", "c.safetensors"]


def test_damaged_one_gives_way_to_the_one_before(tmp_path):
    path = tmp_path / "c.safetensors"
    write(path, 1, 2)
    damage(path)
    with pytest.warns(SynqFastWarning, match=r"c\.safetensors \(.*checksum\) is damaged; going on"):
        assert read(path) == 1


def test_only_one_and_damaged(tmp_path):
    path = tmp_path / "c.safetensors"
    write(path, 1)
    damage(path)
    with pytest.raises(CheckpointError, match=r"c\.safetensors \(its content does not match"):
        read(path)


def test_kill_between_the_two_renames(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    file = write(path, 1, 2)
    rename = os.replace

    def killed(source, target):
        if target == path:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            file.write({"x": torch.zeros(3)}, {"step": "3"})
    with pytest.warns(SynqFastWarning, match=r"c\.safetensors is missing; going on"):
        assert read(path) == 2


def test_damaged_one_never_replaces_the_good_one_before(tmp_path, monkeypatch):
    """Whatever happens at the next save, a whole checkpoint is there."""
    path = tmp_path / "c.safetensors"
    write(path, 1, 2)
    damage(path)
    file = CheckpointFile(path, 0.0)
    with pytest.warns(SynqFastWarning):
        file.read()
    with monkeypatch.context() as patch:
        full_disk(patch, after=0)
        with pytest.raises(StorageError):
            file.write({"x": torch.zeros(3)}, {"step": "7"})
    with pytest.warns(SynqFastWarning):
        assert read(path) == 1
    file.write({"x": torch.full((3,), 2.0)}, {"step": "2"})
    assert read(path) == 2 and read(file.previous) == 1
    file.write({"x": torch.full((3,), 3.0)}, {"step": "3"})
    assert read(path) == 3 and read(file.previous) == 2


def test_due_counts_from_the_last_save(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("synq_fast.storage.checkpoint_file.time.monotonic", lambda: now[0])
    file = CheckpointFile(tmp_path / "c.safetensors", 30.0)
    assert not file.due
    now[0] = 130.0
    assert file.due
    file.write({"x": torch.zeros(1)}, {})
    assert not file.due
    assert CheckpointFile(tmp_path / "d.safetensors", 0.0).due


def test_slow_disk_makes_checkpoints_rarer(tmp_path, monkeypatch):
    """Ten seconds of saving every 200, not every 30."""
    now, flush = [100.0], os.fsync

    def slow(descriptor):
        now[0] += 5.0  # once for the file and once for its folder
        flush(descriptor)

    monkeypatch.setattr("synq_fast.storage.checkpoint_file.time.monotonic", lambda: now[0])
    monkeypatch.setattr(os, "fsync", slow)
    file = write(tmp_path / "c.safetensors")
    always = write(tmp_path / "d.safetensors", 1)
    file.seconds = 30.0
    file.write({"x": torch.zeros(1)}, {})
    assert always.due
    now[0] += 199.0
    assert not file.due
    now[0] += 1.0
    assert file.due


def test_discard(tmp_path):
    file = write(tmp_path / "c.safetensors", 1, 2)
    file.discard()
    assert os.listdir(tmp_path) == [] and file.read() is None
    file.discard()
