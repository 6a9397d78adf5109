import dataclasses
import os

import pytest
import torch

from synq_fast.bank.batches import BatchSource, Filter
from synq_fast.bank.images import ImageBank
from synq_fast.engine.student import build_student
from synq_fast.errors import OutOfMemoryError, SynqFastWarning
from synq_fast.finetune.calibration import calibrate
from synq_fast.quant import ActivationQuantizer, BitWidths, trace
from synq_fast.storage.checkpoint_file import CheckpointFile
from tests.tiny import equal_states, tiny_images, tiny_labels, tiny_recipe, tiny_teacher

BATCHES = BatchSource(ImageBank(tiny_images(12), tiny_labels(12)), 4, (1.0, 1.0), Filter(), 0)


def make_student(policy="mse"):
    recipe = tiny_recipe(quantization__range=policy).quantization
    graph = trace(tiny_teacher().module, tiny_images(2))
    return build_student(graph, BitWidths(4, 4), recipe).eval()


def counted(student) -> list[int]:
    calls = []
    next(m for m in student.modules() if isinstance(m, ActivationQuantizer)).register_forward_hook(
        lambda *_: calls.append(1)
    )
    return calls


def interrupted(path, after, policy="mse", fingerprint="one"):
    def stop(record):
        if record["step"] == after + 1:
            raise KeyboardInterrupt

    file = CheckpointFile(path, 0.0)
    with pytest.raises(KeyboardInterrupt):
        calibrate(
            make_student(policy), BATCHES, 5, report=stop, checkpoint=file, fingerprint=fingerprint
        )


@pytest.mark.parametrize("policy", ["mse", "ema", "minmax"])
@pytest.mark.parametrize("after", [1, 3])
def test_calibration_goes_on_where_it_was_killed(tmp_path, policy, after):
    expected = make_student(policy)
    calibrate(expected, BATCHES, 5)
    path = tmp_path / "calibration.safetensors"
    interrupted(path, after, policy)
    student = make_student(policy)
    calls, seen = counted(student), []
    file = CheckpointFile(path, 0.0)
    calibrate(student, BATCHES, 5, report=seen.append, checkpoint=file, fingerprint="one")
    assert len(calls) == 5 - after
    assert [record["step"] for record in seen] == list(range(after, 6))
    assert equal_states(student, expected)


def test_every_batch_counts():
    """What the tests above rest on: the last batches do change the ranges."""
    ranges = []
    for count in (3, 4, 5):
        student = make_student()
        calibrate(student, BATCHES, count)
        ranges.append(student.quantize_relu.range_max.item())
    assert len(set(ranges)) == 3


def test_checkpoint_of_another_run_is_passed_over(tmp_path):
    expected = make_student()
    calibrate(expected, BATCHES, 5)
    path = tmp_path / "calibration.safetensors"
    interrupted(path, 3, policy="minmax", fingerprint="two")
    student = make_student()
    calibrate(student, BATCHES, 5, checkpoint=CheckpointFile(path, 0.0), fingerprint="one")
    assert equal_states(student, expected)


def test_damaged_checkpoints_cost_a_new_start_and_are_said(tmp_path):
    expected = make_student()
    calibrate(expected, BATCHES, 5)
    path = tmp_path / "calibration.safetensors"
    interrupted(path, 3)
    for each in tmp_path.iterdir():
        each.write_bytes(each.read_bytes()[:-3])
    student = make_student()
    with pytest.warns(SynqFastWarning, match="calibration begins again"):
        calibrate(student, BATCHES, 5, checkpoint=CheckpointFile(path, 0.0), fingerprint="one")
    assert equal_states(student, expected)


def test_end_is_kept_and_not_calibrated_again(tmp_path):
    file, expected = CheckpointFile(tmp_path / "c.safetensors", 1e6), make_student()
    calibrate(expected, BATCHES, 5, checkpoint=file)
    assert os.listdir(tmp_path) == ["c.safetensors"]
    student = make_student()
    calls = counted(student)
    calibrate(student, BATCHES, 5, checkpoint=file)
    assert not calls and equal_states(student, expected)


def test_memory_that_runs_out_names_the_setting():
    def full(step):
        raise torch.OutOfMemoryError("CUDA out of memory")

    batches = dataclasses.replace(BATCHES)
    batches.inputs = full
    with pytest.raises(OutOfMemoryError, match=r"lower quantization\.calibration_batch_size"):
        calibrate(make_student(), batches, 5)
