"""Training that is stopped, damaged or not finite, and goes on."""

import math
import time

import pytest
import torch
from safetensors import safe_open

from synq_fast.errors import CheckpointError, NonFiniteLossError, StorageError, SynqFastWarning
from synq_fast.finetune import training as training_module
from synq_fast.optimize.loop import Loop
from synq_fast.storage.checkpoint_file import CheckpointFile
from tests.faults.disk import full_disk
from tests.finetune.loops import make_loop
from tests.tiny import (
    equal_states,
)


@pytest.fixture(autouse=True)
def frequent_records(monkeypatch):
    monkeypatch.setattr(training_module, "LOG_EVERY", 2)


def stopped(run: Loop, at: int) -> list[dict[str, float]]:
    """Run until step ``at`` begins; returns the records until then."""
    advance = run.advance

    def until_stop():
        if run.done == at:
            raise KeyboardInterrupt
        return advance()

    run.advance = until_stop
    kept = []
    with pytest.raises(KeyboardInterrupt):
        run.run(kept.append)
    return kept


@pytest.mark.parametrize("learn", [False, True], ids=["static", "learned ranges"])
@pytest.mark.parametrize("stop", [0, 1, 2, 5, 11])
def test_resume_is_bit_exact(tmp_path, stop, learn):
    """Also in the middle of a record's window."""
    options = {"finetune__steps": 12, "quantization__learn_ranges": learn}
    straight = make_loop(**options)
    whole = straight.run()

    path = tmp_path / "checkpoint.safetensors"
    kept = stopped(make_loop(path, **options), stop)
    resumed = make_loop(path, **options)
    assert resumed.resume() == (stop > 0)
    assert resumed.done == stop
    rest = resumed.run()
    assert equal_states(resumed.iteration.student, straight.iteration.student)
    assert kept + rest == whole


PSEUDO_LABELS = {
    "finetune__steps": 12,
    "finetune__distillation__label_weight": 0.0,
    "finetune__pseudo_labels__entropy_thresholds": [1.0, 0.98],
}


def test_steps_know_how_far_the_training_is():
    """The labels become unreliable one by one, as the threshold falls to its end."""
    run = make_loop(**PSEUDO_LABELS)
    shares, records = [], []
    for _ in range(12):
        run.advance()
        shares.append(run.iteration.step.done.item())
        records.append(run.look())
    assert shares == pytest.approx([step / 12 for step in range(12)])
    assert records[0]["unreliable_ce"] == 0 and records[0]["reliable_ce"] > 0
    assert records[-1]["reliable_ce"] == 0 and records[-1]["unreliable_ce"] > 0


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_resumed_training_goes_on_with_the_same_threshold(tmp_path, stop):
    straight = make_loop(**PSEUDO_LABELS)
    whole = straight.run()
    path = tmp_path / "checkpoint.safetensors"
    kept = stopped(make_loop(path, **PSEUDO_LABELS), stop)
    resumed = make_loop(path, **PSEUDO_LABELS)
    assert resumed.resume()
    assert kept + resumed.run() == whole
    assert equal_states(resumed.iteration.student, straight.iteration.student)


def test_checkpoint_before_the_first_step(tmp_path):
    path = tmp_path / "c.safetensors"
    first = make_loop(path)
    with torch.no_grad():
        first.iteration.student.quantize_relu.range_max.fill_(7)
    first.save()
    second = make_loop(path)
    assert second.resume() and second.done == 0
    assert equal_states(first.iteration.student, second.iteration.student)


def test_finished_run_has_nothing_left_to_do(tmp_path):
    path = tmp_path / "c.safetensors"
    first = make_loop(path)
    first.run()
    again = make_loop(path)
    assert again.resume()
    assert again.run() == []
    assert equal_states(first.iteration.student, again.iteration.student)


def test_checkpoint_round_trip(tmp_path):
    path = tmp_path / "c.safetensors"
    first = make_loop(path, quantization__learn_ranges=True)
    first.run()
    second = make_loop(quantization__learn_ranges=True)
    assert not equal_states(first.iteration.student, second.iteration.student)
    second.checkpoint = CheckpointFile(path, 0)
    assert second.resume()
    assert (second.done, second.iteration.micro_batches.size, second.window) == (6, 0, [])
    assert equal_states(first.iteration.student, second.iteration.student)
    for a, b in zip(first.iteration.step.parameters, second.iteration.step.parameters, strict=True):
        momentum = first.iteration.optimizer.state[a]["momentum_buffer"]
        assert torch.equal(momentum, second.iteration.optimizer.state[b]["momentum_buffer"])
        assert momentum.abs().sum() > 0


@pytest.mark.parametrize(("seconds", "saved"), [(1e6, [6]), (10.0, [3, 6]), (0.0, range(1, 7))])
def test_checkpoints_come_when_due(tmp_path, monkeypatch, seconds, saved):
    """Whatever the records' rhythm; the last step is always saved."""
    run = make_loop(tmp_path / "c.safetensors", finetune__checkpoint_seconds=seconds)
    start, began = time.monotonic(), run.done
    monkeypatch.setattr(
        "synq_fast.storage.checkpoint_file.time.monotonic", lambda: start + 4.0 * (run.done - began)
    )
    seen = []
    save = run.save
    run.save = lambda: (seen.append(run.done), save())
    run.run()
    assert seen == list(saved)


def test_checkpoint_of_another_run(tmp_path):
    path = tmp_path / "c.safetensors"
    make_loop(path, "one").run()
    with pytest.raises(
        CheckpointError, match="belongs to another model, recipe, bit width or seed"
    ):
        make_loop(path, "two").resume()


DAMAGE = {
    "empty": lambda content: b"",
    "header cut": lambda content: content[:10],
    "tail missing": lambda content: content[:-30],
    "a bit of a weight": lambda content: content[:-7] + bytes([content[-7] ^ 4]) + content[-6:],
    "step": lambda content: content.replace(b'"step":"6"', b'"step":"8"'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, damage):
    path = tmp_path / "c.safetensors"
    straight = make_loop(path)
    history = straight.run()
    content = path.read_bytes()
    assert damage(content) != content
    path.write_bytes(damage(content))
    again = make_loop(path)
    with pytest.warns(SynqFastWarning, match=r"c\.safetensors .*damaged; going on from .*previous"):
        assert again.resume()
    assert again.done == 5
    assert again.run() == history[-1:]
    assert equal_states(again.iteration.student, straight.iteration.student)
    # The damaged file has not become the previous one: that may be needed once more.
    assert CheckpointFile(tmp_path / "c.previous.safetensors", 0).read()[1]["step"] == "5"


def test_two_damaged_checkpoints_say_what_to_do(tmp_path):
    path = tmp_path / "c.safetensors"
    make_loop(path).run()
    for each in tmp_path.iterdir():
        each.write_bytes(each.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"c\.safetensors .*previous.*delete them and"):
        make_loop(path).resume()


def test_checkpoint_that_cannot_be_written_stops_the_run_and_keeps_the_last(tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    straight = make_loop()
    whole = straight.run()
    run = make_loop(path)
    kept = []
    with monkeypatch.context() as patch:
        full_disk(patch, after=6)  # a file and its folder, three times
        with pytest.raises(StorageError, match=r"cannot write .*c\.safetensors: No space left"):
            run.run(kept.append)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.previous.safetensors", "c.safetensors"]
    again = make_loop(path)
    assert again.resume() and again.done == 3
    rest = again.run()
    assert [r for r in kept if r["step"] <= 3] + rest == whole
    assert equal_states(again.iteration.student, straight.iteration.student)


def test_no_checkpoint_is_no_error(tmp_path):
    assert not make_loop(tmp_path / "missing.safetensors").resume()
    assert not make_loop().resume()


def poison(run: Loop, at: int, name: str, value: float) -> None:
    step = run.iteration.step.__call__

    class Poisoned:
        term_names, parameters = run.iteration.step.term_names, run.iteration.step.parameters
        done = run.iteration.step.done

        def __call__(self, images, labels):
            losses = step(images, labels)
            if run.done == at:
                losses[name] = torch.tensor(value)
            return losses

    run.iteration.step = Poisoned()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_loss_names_term_and_step_and_keeps_the_checkpoint(tmp_path, value):
    path = tmp_path / "c.safetensors"
    run = make_loop(path, finetune__steps=12)
    poison(run, 5, "features", value)
    with pytest.raises(NonFiniteLossError, match=f'step 5: the term "features" is {value}'):
        run.run()
    again = make_loop(path, finetune__steps=12)
    assert again.resume() and again.done == 5
    assert all(p.isfinite().all() for p in again.iteration.student.parameters())


def test_weights_that_are_not_finite_never_reach_a_checkpoint(tmp_path):
    """The losses of the steps so far are finite; the update of step 3 is what breaks."""
    path = tmp_path / "c.safetensors"
    run = make_loop(path, finetune__steps=4)
    step = run.iteration.optimizer.step

    def broken():
        if run.done == 3:
            run.iteration.step.parameters[1].grad[0] = math.nan
        step()

    run.iteration.optimizer.step = broken
    with pytest.raises(NonFiniteLossError, match=r"weights .*step 4"):
        run.run()
    again = make_loop(path, finetune__steps=4)
    assert again.resume() and again.done == 3
    assert all(p.isfinite().all() for p in again.iteration.student.parameters())


def test_checkpoint_holds_no_pickle(tmp_path):
    path = tmp_path / "c.safetensors"
    make_loop(path).run()
    with safe_open(path, "pt") as file:
        texts = file.metadata()
        checksum = texts.pop("crc32")
        assert texts == {"step": "6", "fingerprint": "print"}
        assert len(bytes.fromhex(checksum)) == 4
        names = set(file.keys())
    assert {"model.conv1.weight", "model.quantize_relu.range_max"} <= names
    assert any(name.startswith("optimizer.") for name in names)


def test_zero_steps_is_calibration_only():
    run = make_loop(finetune__steps=0)
    before = {k: v.clone() for k, v in run.iteration.student.state_dict().items()}
    assert run.run() == []
    assert all(torch.equal(v, before[k]) for k, v in run.iteration.student.state_dict().items())
