"""A lack of memory outside of training is explained too."""

import pytest
import torch
from torch import nn

import synq_fast
from synq_fast.errors import OutOfMemoryError
from synq_fast.runtime.out_of_memory import reason_of
from tests.tiny import SHAPE, TINY_OVERRIDES, TinyNet, tiny_teacher

GIVEN = {"recipe": "synq-digits", "overrides": TINY_OVERRIDES, "progress": False}
NO_MEMORY = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. can't allocate memory")


def fails(*args, **kwargs):
    raise NO_MEMORY


@pytest.mark.parametrize(
    ("call", "work"),
    [
        (lambda folder: synq_fast.quantize(tiny_teacher(), **GIVEN), "quantization"),
        (lambda folder: synq_fast.synthesize(tiny_teacher(), folder, **GIVEN), "synthesis"),
        (lambda folder: synq_fast.sensitivity(tiny_teacher(), **GIVEN), "the measurement"),
    ],
)
def test_while_a_run_is_prepared(call, work, tmp_path, monkeypatch):
    monkeypatch.setattr("synq_fast.engine.run.find_structure", fails)
    with pytest.raises(OutOfMemoryError, match=rf"^{work} ran out of memory .*take a machine"):
        call(tmp_path / "bank")


def test_wherever_a_model_is_called(monkeypatch):
    """Nothing takes it for a defect of the model, or for an image that the model does not take."""
    calls = 0

    class Counting(TinyNet):
        fails_at = -1

        def forward(self, x):
            nonlocal calls
            calls += 1
            if calls - 1 == self.fails_at:
                raise NO_MEMORY
            return super().forward(x)

    def prepared(fails_at):
        nonlocal calls
        calls = 0
        monkeypatch.setattr(Counting, "fails_at", fails_at)
        torch.manual_seed(0)
        monkeypatch.setattr("synq_fast.engine.run.Run.stages", done)
        synq_fast.quantize(Counting().eval(), input_shape=SHAPE, **GIVEN)

    class Prepared(Exception):
        pass

    def done(run):
        raise Prepared

    with pytest.raises(Prepared):
        prepared(-1)
    whole = calls
    assert whole >= 4
    for place in range(whole):
        with pytest.raises(OutOfMemoryError, match="quantization ran out of memory"):
            prepared(place)


def test_while_a_model_is_copied(monkeypatch):
    monkeypatch.setattr("synq_fast.models.preparation.copy.deepcopy", fails)
    with pytest.raises(OutOfMemoryError, match="quantization ran out of memory"):
        synq_fast.quantize(TinyNet().eval(), input_shape=SHAPE, **GIVEN)


def test_evaluation():
    class Large(nn.Module):
        forward = fails

    batch = [(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))]
    with pytest.raises(OutOfMemoryError, match=r"^evaluation ran out of memory .*batch size"):
        synq_fast.evaluate(Large(), batch)


def test_what_has_another_reason_stays(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("another reason")

    monkeypatch.setattr("synq_fast.engine.run.find_structure", broken)
    with pytest.raises(RuntimeError, match="another reason"):
        synq_fast.quantize(tiny_teacher(), **GIVEN)


def test_what_an_allocator_says_is_kept_and_where_it_says_it_is_not():
    said = str(NO_MEMORY) + ": you tried to allocate 8 bytes.\nmore"
    assert reason_of(RuntimeError(said)) == "can't allocate memory: you tried to allocate 8 bytes."
    assert reason_of(MemoryError()) == "no memory left"
