import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import synq_fast
from synq_fast.engine.run import Run
from synq_fast.errors import CheckpointError, DataError, RunFolderError, SynqFastWarning
from synq_fast.finetune import training as training_module
from synq_fast.finetune.training import Training
from synq_fast.optimize.loop import Loop
from synq_fast.quant import ActivationQuantizer
from synq_fast.recipes import load_recipe
from synq_fast.storage.files import read_tensors
from synq_fast.synthesis.synthesizer import Synthesizer
from tests.tiny import equal_states, labelled, run, tiny_images, tiny_net

CENTERS = {"synthesis.centers.weight": 0.1, "synthesis.centers.steps": 3}


@pytest.fixture(autouse=True)
def frequent_records(monkeypatch):
    monkeypatch.setattr(training_module, "LOG_EVERY", 2)


# Saving and loading


@pytest.mark.parametrize(
    "overrides",
    [{}, {"quantization.placement": "all_inputs"}, {"quantization.learn_ranges": True},
     {"quantization.range": "ema", "quantization.ste": "clip"}],
)  # fmt: skip
def test_saved_model_gives_identical_outputs(tmp_path, overrides):
    result = run(overrides=overrides, bits="w2a3")
    result.save(tmp_path / "own.safetensors")
    loaded = synq_fast.load(tmp_path / "own.safetensors", model=tiny_net(seed=5).train())
    assert not loaded.training
    assert equal_states(loaded, result.model)
    for images in (tiny_images(9), tiny_images(9).contiguous(memory_format=torch.channels_last)):
        assert torch.equal(loaded(images), result.model(images))


def test_module_of_the_users_is_needed_to_load(tmp_path):
    path = tmp_path / "own.safetensors"
    run().save(path)
    with pytest.raises(CheckpointError, match=r"made from \"TinyNet\".*model="):
        synq_fast.load(path)
    with pytest.raises(CheckpointError, match=r"does not fit|cannot be built"):
        synq_fast.load(path, model=nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Flatten()))


@pytest.mark.parametrize("damage", ["missing", "truncated", "float checkpoint", "text"])
def test_file_that_is_no_quantized_model(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    if damage == "truncated":
        run().save(path)
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "float checkpoint":
        save_file(tiny_net().state_dict(), path)
    elif damage == "text":
        path.write_text("hello")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        synq_fast.load(path, model=tiny_net())


def test_save_replaces_a_file(tmp_path):
    path = tmp_path / "own.safetensors"
    path.write_text("old")
    result = run()
    result.save(str(path))
    assert equal_states(synq_fast.load(str(path), model=tiny_net()), result.model)


# The run folder


def test_run_folder_holds_the_run(tmp_path):
    folder = tmp_path / "a" / "run"
    result = run(output=folder, evaluation=labelled())
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names == {
        "run.json",
        "about.json",
        "recipe.toml",
        "log.jsonl",
        "metrics.json",
        "model.safetensors",
        "checkpoint.safetensors",
        "checkpoint.previous.safetensors",
        "calibration.safetensors",
        "calibration.previous.safetensors",
        "bank/bank.json",
        "bank/batch-00000.jsonl",
        "bank/batch-00001.jsonl",
        "bank/shard-00000.safetensors",
        "bank/shard-00001.safetensors",
    }
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    recipe = load_recipe(folder / "recipe.toml")
    assert recipe == result.recipe and recipe.finetune.steps == 6
    assert json.loads((folder / "run.json").read_text())["bits"] == "w4a4"
    assert equal_states(synq_fast.load(folder, model=tiny_net()), result.model)


def test_folder_that_is_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"exists already; add --resume \(resume=True\)"):
        run(output=tmp_path)
    with pytest.raises(RunFolderError, match="exists already"):
        run(output=tmp_path / "notes.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    run(output=tmp_path / "empty")


@pytest.mark.parametrize("content", [None, "", "{"])
def test_nothing_to_resume(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunFolderError, match="holds no run to resume"):
        run(output=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"bits": "w3a4"}, "bits"),
        ({"seed": 1}, "seed"),
        ({"overrides": {"finetune.steps": 7}}, "recipe"),
        ({"teacher": tiny_net(seed=3)}, "teacher"),
    ],
)
def test_resume_of_another_run_says_what_differs(tmp_path, change, word):
    run(output=tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(RunFolderError, match=f"belongs to a run with another {word};"):
        run(output=tmp_path, resume=True, **change)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    first = run(output=tmp_path, evaluation=labelled(), evaluate_every=2)
    again = run(output=tmp_path, evaluation=labelled(), evaluate_every=2, resume=True)
    assert equal_states(first.model, again.model)
    assert first.history == again.history
    for name in ("float32", "post-training", "quantized", "best seen"):
        assert first.metrics.get(name) == again.metrics.get(name)


# Interruptions


def _interrupt(monkeypatch, phase: str) -> None:
    """Raises KeyboardInterrupt once, in the middle of a phase."""
    owner, name, calls = {
        "centers": (Synthesizer, "_pooled_statistics", 1),
        "synthesis": (Synthesizer, "batch", 2),
        "calibration": (ActivationQuantizer, "forward", 3),
        "fine-tuning": (Training, "prepare", 4),
        "first step": (Training, "prepare", 1),
        "saving": (Run, "finish", 1),
    }[phase]
    original, left = getattr(owner, name), [calls]

    def interrupted(*args, **options):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    "phase", ["centers", "synthesis", "calibration", "first step", "fine-tuning", "saving"]
)
def test_interrupted_run_resumes_to_the_same_model(tmp_path, monkeypatch, phase):
    expected = run(overrides=CENTERS)
    with monkeypatch.context() as patch:
        _interrupt(patch, phase)
        with pytest.raises(KeyboardInterrupt):
            run(overrides=CENTERS, output=tmp_path)
    resumed = run(overrides=CENTERS, output=tmp_path, resume=True)
    assert equal_states(resumed.model, expected.model)
    assert resumed.history == expected.history
    assert equal_states(synq_fast.load(tmp_path, model=tiny_net()), expected.model)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected.history


KILLED = """
import os, signal, sys
from synq_fast.finetune import training
from tests.tiny import run

training.LOG_EVERY = 2
prepare = training.Training.prepare

def killed(self, step):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return prepare(self, step)

training.Training.prepare = killed
run(output=sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_process_resumes_to_the_same_model(tmp_path):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run")]
    process = subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=300)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed = run(output=tmp_path / "run", resume=True)
    expected = run()
    assert resumed.history == expected.history
    assert equal_states(resumed.model, expected.model)


def test_post_training_accuracy_survives_an_interruption(tmp_path, monkeypatch):
    expected = run(evaluation=labelled())
    with monkeypatch.context() as patch:
        _interrupt(patch, "fine-tuning")
        with pytest.raises(KeyboardInterrupt):
            run(evaluation=labelled(), output=tmp_path)
    resumed = run(evaluation=labelled(), output=tmp_path, resume=True)
    assert resumed.metrics["post-training"] == expected.metrics["post-training"]


def test_resume_makes_only_what_is_missing(tmp_path, monkeypatch):
    expected = run(output=tmp_path / "run")
    lost = tmp_path / "run" / "bank" / "shard-00000.safetensors"
    content = lost.read_bytes()
    lost.unlink()
    made = []
    original = Synthesizer.batch

    def noted(self, index, *args):
        made.append(index)
        return original(self, index, *args)

    monkeypatch.setattr(Synthesizer, "batch", noted)
    again = run(output=tmp_path / "run", resume=True)
    assert made == [0]
    assert lost.read_bytes() == content
    assert equal_states(again.model, expected.model)


def test_corrupt_shard_is_named_and_mended_by_deleting_it(tmp_path):
    expected = run(output=tmp_path)
    shard = tmp_path / "bank" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DataError, match=r"shard-00001\.safetensors is damaged"):
        run(output=tmp_path, resume=True)
    shard.unlink()
    assert equal_states(run(output=tmp_path, resume=True).model, expected.model)


def test_damaged_checkpoint_is_replaced_by_the_one_before(tmp_path):
    expected = run(output=tmp_path)
    checkpoint = tmp_path / "checkpoint.safetensors"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-5])
    with pytest.warns(SynqFastWarning, match=r"checkpoint\.safetensors .* is damaged"):
        again = run(output=tmp_path, resume=True)
    assert equal_states(again.model, expected.model)
    assert again.history == expected.history
    (tmp_path / "last.safetensors").write_bytes(content)
    last, mended = read_tensors(tmp_path / "last.safetensors"), read_tensors(checkpoint)
    assert mended[1] == last[1]
    assert all(torch.equal(value, last[0][name]) for name, value in mended[0].items())


def test_damaged_checkpoints_are_named_and_mended_by_deleting_them(tmp_path):
    expected = run(output=tmp_path)
    checkpoints = list(tmp_path.glob("checkpoint*"))
    for checkpoint in checkpoints:
        checkpoint.write_bytes(checkpoint.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"no whole checkpoint .*delete them and resume"):
        run(output=tmp_path, resume=True)
    for checkpoint in checkpoints:
        checkpoint.unlink()
    assert equal_states(run(output=tmp_path, resume=True).model, expected.model)


def test_log_that_is_ahead_of_the_checkpoint(tmp_path, monkeypatch):
    rare = {"finetune.checkpoint_seconds": 1e6}
    expected = run(overrides=rare)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", None)
        patch.setattr(Loop, "save", lambda self: None)
        with pytest.raises(TypeError):
            run(overrides=rare, output=tmp_path)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    assert run(overrides=rare, output=tmp_path, resume=True).history == expected.history
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == expected.history


def test_log_cut_in_the_middle_of_a_line(tmp_path, monkeypatch):
    expected = run()
    with monkeypatch.context() as patch:
        _interrupt(patch, "fine-tuning")
        with pytest.raises(KeyboardInterrupt):
            run(output=tmp_path)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "kl"')
    assert run(output=tmp_path, resume=True).history == expected.history


def test_time_is_that_of_all_processes(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        _interrupt(patch, "fine-tuning")
        with pytest.raises(KeyboardInterrupt):
            run(output=tmp_path)
    path = tmp_path / "metrics.json"
    metrics = json.loads(path.read_text())
    assert set(metrics["seconds"]) == {"synthesis", "calibration"}
    metrics["seconds"]["synthesis"] = 1000.0
    path.write_text(json.dumps(metrics))
    seconds = run(output=tmp_path, resume=True).metrics["seconds"]
    assert seconds["synthesis"] >= 1000
    assert set(seconds) == {"synthesis", "calibration", "fine-tuning"}


def test_what_is_noted_of_a_run(tmp_path):
    run(output=tmp_path / "run", bank=tmp_path / "images")
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    assert about["bank"] == "../images" and about["recipe"] == "synq-digits"
    network = about["network"]
    assert (network["name"], network["input_shape"]) == ("TinyNet", [2, 8, 8])
    assert network["source"] is None and about["versions"]["torch"]
    assert about["machine"]["device"] == "cpu" and about["machine"]["processes"] == "1"


def test_records_of_images_lie_beside_them(tmp_path, monkeypatch):
    run(output=tmp_path / "a", bank=tmp_path / "whole")
    with monkeypatch.context() as patch:
        _interrupt(patch, "synthesis")
        with pytest.raises(KeyboardInterrupt):
            run(output=tmp_path / "b", bank=tmp_path / "cut")
    run(output=tmp_path / "b", bank=tmp_path / "cut", resume=True)
    for index in range(2):
        name = f"batch-{index:05d}.jsonl"
        (record,) = [json.loads(x) for x in (tmp_path / "whole" / name).read_text().splitlines()]
        assert (record["stage"], record["batch"], record["step"]) == ("synthesis", index, 3)
        assert record["statistics"] > 0 and record["classes"] > 0
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()
