"""Runs whose bank stays in its files: the same result, errors in the caller, no thread left."""

import threading

import pytest
import torch

from synq_fast.bank import assembly
from synq_fast.bank.images import ImageBank
from synq_fast.bank.streamed import StreamedBank
from synq_fast.engine import calls as engine_module
from synq_fast.engine.run import Run
from synq_fast.errors import DataError, RecipeError
from synq_fast.finetune import training as training_module
from synq_fast.finetune.training import Training
from tests.tiny import TINY_OVERRIDES, equal_states, run, tiny_net

STREAM = {"finetune.bank": "stream"}


@pytest.fixture(autouse=True)
def frequent_records(monkeypatch):
    monkeypatch.setattr(training_module, "LOG_EVERY", 2)


@pytest.fixture(autouse=True)
def no_thread_stays():
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith("synq-fast")]


@pytest.fixture
def used_banks(monkeypatch):
    """The kinds of bank that the runs of a test trained on."""
    kinds = []
    original = Run.training

    def noted(self, student, images):
        kinds.append(type(images.bank))
        return original(self, student, images)

    monkeypatch.setattr(Run, "training", noted)
    return kinds


def test_streamed_run_ends_in_the_same_model(tmp_path, used_banks):
    memory = run(overrides={"finetune.bank": "memory"})
    fresh = run(output=tmp_path / "run", overrides=STREAM)
    found = run(bank=tmp_path / "run" / "bank", overrides=STREAM, output=tmp_path / "again")
    assert used_banks == [ImageBank, StreamedBank, StreamedBank]
    for other in (fresh, found):
        assert equal_states(other.model, memory.model)
        assert other.history == memory.history


def test_bank_is_streamed_where_memory_is_short(tmp_path, monkeypatch, used_banks):
    run(bank=tmp_path)
    size = 12 * 2 * 8 * 8 * 4
    monkeypatch.setattr(assembly, "free_memory", lambda device: 2 * size - 2)
    run(bank=tmp_path)
    run()  # nowhere to stream from
    assert used_banks == [ImageBank, StreamedBank, ImageBank]


def test_streaming_needs_a_folder():
    with pytest.raises(RecipeError, match="name a folder"):
        run(overrides=STREAM)


def test_placement_is_not_part_of_the_bank(tmp_path, used_banks):
    run(bank=tmp_path, overrides=STREAM)
    run(bank=tmp_path)
    assert used_banks == [StreamedBank, ImageBank]


def test_bank_alone_can_stay_in_its_files(tmp_path):
    bank = engine_module.synthesize(
        tiny_net(), tmp_path, "synq-digits", (2, 8, 8), overrides={**TINY_OVERRIDES, **STREAM},
        progress=False,
    )  # fmt: skip
    assert isinstance(bank, StreamedBank) and len(bank) == 12
    assert bank.take(torch.arange(3))[0].shape == (3, 2, 8, 8)


@pytest.mark.parametrize("step", [0, 3, 5])
def test_interrupted_streamed_run_resumes_to_the_same_model(tmp_path, monkeypatch, step):
    expected = run()
    prepare = Training.prepare

    def interrupted(self, now):
        if now == step:
            raise KeyboardInterrupt
        return prepare(self, now)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "prepare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(output=tmp_path, overrides=STREAM)
    resumed = run(output=tmp_path, overrides=STREAM, resume=True)
    assert equal_states(resumed.model, expected.model)
    assert resumed.history == expected.history


def test_error_of_the_reading_thread_stops_the_run(tmp_path, monkeypatch):
    expected = run()
    take, left = StreamedBank.take, [2 + 4]  # calibration, then fine-tuning

    def failing(self, chosen):
        left[0] -= 1
        if left[0] < 0:
            raise DataError("the disk with the images is gone")
        return take(self, chosen)

    with monkeypatch.context() as patch:
        patch.setattr(StreamedBank, "take", failing)
        with pytest.raises(DataError, match="the disk with the images is gone"):
            run(output=tmp_path, overrides=STREAM)
    assert equal_states(run(output=tmp_path, overrides=STREAM, resume=True).model, expected.model)
