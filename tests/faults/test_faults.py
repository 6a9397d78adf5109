"""Whole runs in trouble: disks, folders, memory, damaged files."""

import os
import stat
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from synq_fast import cli
from synq_fast.engine.run import Run
from synq_fast.errors import StorageError, SynqFastWarning
from synq_fast.finetune import training as training_module
from synq_fast.finetune.step import Step
from synq_fast.quant.observers import MseObserver
from synq_fast.storage.run_folder import RunFolder
from tests.faults.disk import full_disk
from tests.tiny import TINY_OVERRIDES, equal_states, labelled, run

CENTERS = {"synthesis.centers.weight": 0.1, "synthesis.centers.steps": 3}


@pytest.fixture(autouse=True)
def frequent_records(monkeypatch):
    monkeypatch.setattr(training_module, "LOG_EVERY", 2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run's result, and how many flushes to the disk it takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_module, "LOG_EVERY", 2)
        count = full_disk(patch, float("inf"))
        result = run(overrides=CENTERS, output=tmp_path_factory.mktemp("whole") / "run")
    return result, count[0]


@pytest.mark.parametrize("share", [0, 0.1, 0.3, 0.45, 0.6, 0.75, 0.9, 0.97])
def test_disk_that_fills_up_stops_the_run_and_room_lets_it_go_on(
    tmp_path, monkeypatch, undisturbed, share
):
    expected, flushes = undisturbed
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        full_disk(patch, int(share * flushes))
        message = rf"cannot write {folder}.*: No space left on device\. Make room .*--resume"
        with pytest.raises(StorageError, match=message):
            run(overrides=CENTERS, output=folder)
    assert not list(folder.rglob("*.tmp"))
    resume = (folder / "run.json").exists()
    assert resume == (share > 0)
    made = {p: p.read_bytes() for p in folder.rglob("shard-0000?.safetensors")}
    assert len(made) == 2 or share < 0.5
    resumed = run(overrides=CENTERS, output=folder, resume=resume)
    assert equal_states(resumed.model, expected.model)
    assert resumed.history == expected.history
    assert all(path.read_bytes() == content for path, content in made.items())


@contextmanager
def without_permission(folder: Path):
    """Nobody, root included, may write to the folder."""
    folder.chmod(0o555)
    as_root = os.geteuid() == 0
    if as_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if as_root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
def test_read_only_folder_is_named():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with without_permission(folder):
            with pytest.raises(
                StorageError, match=rf"cannot write {folder}.run: Permission denied"
            ):
                run(output=folder / "run")
            with pytest.raises(StorageError, match=rf"cannot write {folder}.bank: Permission"):
                run(bank=folder / "bank")
        result = run(output=folder / "run")
        before = {p: p.stat() for p in folder.rglob("*")}
        (folder / "run" / "model.safetensors").unlink()
        with without_permission(folder / "run"):
            assert stat.S_IMODE((folder / "run").stat().st_mode) == 0o555
            with pytest.raises(StorageError, match=r"cannot write .*run.recipe\.toml: Permission"):
                run(output=folder / "run", resume=True)
        left = {p: p.stat() for p in folder.rglob("*") if p.is_file()}
        assert all(left[p].st_mtime == before[p].st_mtime for p in left)
        assert equal_states(run(output=folder / "run", resume=True).model, result.model)


def test_log_that_cannot_be_written(tmp_path):
    folder = RunFolder(tmp_path / "run", {}, "", resume=False)
    (tmp_path / "run" / "log.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*log\.jsonl"):
        folder.append_history({"step": 1})


def test_folder_left_before_its_first_file_can_be_used(tmp_path, monkeypatch):
    """A kill in the first moment leaves nothing to resume, and nothing in the way."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("synq_fast.storage.files.os.replace", lambda *_: os._exit(1))
        child = os.fork()
        if child == 0:
            RunFolder(folder, {}, "", resume=False)
        os.waitpid(child, 0)
    assert [p.suffix for p in folder.iterdir()] == [".tmp"]
    run(output=folder)


def test_memory_that_runs_out_in_mid_run(tmp_path, monkeypatch):
    expected = run()
    terms, said = Step.terms, []

    def limited(step, images, labels):
        if len(labels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        said.append(len(labels))
        return terms(step, images, labels)

    monkeypatch.setattr(Step, "terms", limited)
    with pytest.warns(SynqFastWarning, match="micro-batches of 2 images") as caught:
        result = run(output=tmp_path)
    assert len(caught) == 1 and said == [2] * 12
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_calibration_is_done_once(tmp_path, monkeypatch):
    expected = run()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "training", None)
        with pytest.raises(TypeError):
            run(output=tmp_path)
    monkeypatch.setattr(MseObserver, "observe", None)
    assert equal_states(run(output=tmp_path, resume=True).model, expected.model)


def test_post_training_accuracy_is_measured_after_a_kill_before_it(tmp_path, monkeypatch):
    expected = run(evaluation=labelled())
    measure = Run.measure

    def killed(self, name, model):
        if name == "post-training":
            raise KeyboardInterrupt
        return measure(self, name, model)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            run(evaluation=labelled(), output=tmp_path)
    resumed = run(evaluation=labelled(), output=tmp_path, resume=True)
    assert resumed.metrics["post-training"] == expected.metrics["post-training"]


def test_command_says_what_went_wrong_in_plain_words(tmp_path, monkeypatch, capsys):
    values = [part for k, v in TINY_OVERRIDES.items() for part in ("--set", f"{k}={v}")]
    command = [
        *("quantize", "--model", "tests.tiny:tiny_net", "--input-shape", "2,8,8"),
        *("--recipe", "synq-digits", "--quiet", "--output", str(tmp_path), *values),
    ]
    with monkeypatch.context() as patch:
        full_disk(patch, after=20)
        assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"synq-fast: error: cannot write {tmp_path}") and "Make room" in error
    assert cli.main([*command, "--resume"]) == 0
    path = tmp_path / "w4a4" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    capsys.readouterr()
    for _ in range(2):
        assert cli.main([*command, "--resume"]) == 0
        error = capsys.readouterr().err
        assert error.startswith(f"synq-fast: warning: the checkpoint {path} (")
        assert error.count("\n") == 1 and "SynqFastWarning" not in error
        path.write_bytes(path.read_bytes()[:-5])
