import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from synq_fast.errors import StorageError
from synq_fast.storage import files
from tests.faults.disk import full_disk

CONTENT = {"x": torch.arange(5.0), "flag": torch.tensor(True), "none": torch.zeros(0, 3)}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_round_trip(tmp_path):
    path = tmp_path / "a.safetensors"
    crossed = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    content = {**CONTENT, "crossed": crossed, "half": torch.randn(3).bfloat16()}
    files.write_tensors(path, content, {"step": "3"})
    tensors, texts = files.read_tensors(path, checked=True)
    assert same(tensors, content) and texts == {"step": "3"}
    assert same(load_file(path), content)


def test_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    files.write_tensors(path, CONTENT, {"step": "3"})
    content = path.read_bytes()
    intact = 0
    for position in range(len(content)):
        for bit in (0, 6):
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                tensors, texts = files.read_tensors(path, checked=True)
            except OSError:
                continue
            # Only in what carries nothing: the spaces that fill up the header.
            assert same(tensors, CONTENT) and texts == {"step": "3"}
            intact += 1
    assert intact <= 16


def test_file_without_checksum_is_read_where_that_is_allowed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(CONTENT, path)
    assert same(files.read_tensors(path)[0], CONTENT)
    with pytest.raises(OSError, match="checksum"):
        files.read_tensors(path, checked=True)


def test_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    path, events = tmp_path / "a.safetensors", []
    flush, rename = os.fsync, os.replace

    def noted_flush(descriptor):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("flush folder" if folder else "flush file")
        flush(descriptor)

    def noted_rename(source, target):
        events.append(f"rename to {os.path.basename(target)}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(os, "replace", noted_rename)
    previous = tmp_path / "b.safetensors"
    files.write_tensors(path, CONTENT)
    files.write_tensors(path, CONTENT, previous=previous)
    assert events == [
        "flush file",
        "rename to a.safetensors",
        "flush folder",
        "flush file",
        "rename to b.safetensors",
        "rename to a.safetensors",
        "flush folder",
    ]
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.safetensors"]


def test_others_may_read_what_the_user_lets_them_read(tmp_path):
    before = os.umask(0o022)
    try:
        files.write_tensors(tmp_path / "a.safetensors", CONTENT)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o644


@pytest.mark.parametrize("write", ["tensors", "text"])
def test_full_disk_keeps_the_old_file_and_says_what_to_do(tmp_path, monkeypatch, write):
    path = tmp_path / "a"
    path.write_text("old")
    full_disk(monkeypatch, after=0)
    with pytest.raises(StorageError, match=r"cannot write .*a: No space left.*Make room") as caught:
        if write == "text":
            files.write_text(path, "new")
        else:
            files.write_tensors(path, CONTENT)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]


LIMITED = """
import resource, sys, torch
from pathlib import Path
from synq_fast.storage import files
from synq_fast.errors import StorageError

path = Path(sys.argv[1])
files.write_tensors(path, {"x": torch.ones(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
try:
    files.write_tensors(path, {"x": torch.zeros(100000)})
except StorageError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_FSIZE")
def test_write_that_the_system_cuts_short(tmp_path):
    """A real one: the system takes 10,000 bytes and refuses the rest."""
    path = tmp_path / "a.safetensors"
    command = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert f"cannot write {path}: File too large" in done.stdout
    assert torch.equal(files.read_tensors(path, checked=True)[0]["x"], torch.ones(10))
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*gone.a: No such file"):
        files.write_text(tmp_path / "gone" / "a", "new")


def test_leftovers_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    names = {
        f"a.safetensors.{host}-{dead.pid}.tmp": False,
        f"a.safetensors.{host}-{os.getpid()}.tmp": True,
        "a.safetensors.another-host-7.tmp": True,
        "old.another-host-7.tmp": False,
        "notes.txt": True,
    }
    for name in names:
        (tmp_path / name).write_text("x")
    long_ago = time.time() - 7200
    os.utime(tmp_path / "old.another-host-7.tmp", (long_ago, long_ago))
    files.remove_leftovers(tmp_path)
    assert set(os.listdir(tmp_path)) == {name for name, stays in names.items() if stays}
    files.remove_leftovers(tmp_path / "missing")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_writer_leaves_the_old_file_and_its_leftover_goes(tmp_path):
    path = tmp_path / "a.safetensors"
    files.write_tensors(path, CONTENT)
    child = os.fork()
    if child == 0:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        files.write_text(path, "new")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert same(files.read_tensors(path, checked=True)[0], CONTENT)
    assert len(os.listdir(tmp_path)) == 2
    files.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_some_rows_of_a_file(tmp_path):
    path = tmp_path / "a.safetensors"
    content = {"x": torch.arange(12.0).view(4, 3), "y": torch.arange(4)}
    files.write_tensors(path, content)
    assert files.rows_of(path, "x") == 4
    found = files.read_rows(path, {"x": [2, 0], "y": [3]})
    assert torch.equal(found["x"], content["x"][[2, 0]]) and found["y"].tolist() == [3]
    for read in (files.rows_of, lambda path, name: files.read_rows(path, {name: [0]})):
        with pytest.raises(OSError):
            read(path, "z")
        with pytest.raises(OSError):
            read(tmp_path / "none.safetensors", "x")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(OSError):
        files.rows_of(path, "x")
