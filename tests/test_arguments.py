"""Numbers and sequences of other libraries as arguments, and those that are none."""

import numpy as np
import pytest
import torch

import synq_fast
from synq_fast.arguments import whole_number
from synq_fast.errors import ArgumentError, ModelError, SynqFastError
from tests.tiny import SHAPE, TINY_OVERRIDES, equal_states, labelled, run, tiny_net


@pytest.mark.parametrize(
    "value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)], ids=lambda v: repr(v)
)
def test_whole_numbers(value):
    number = whole_number("n", value, 3)
    assert number == 3 and type(number) is int


@pytest.mark.parametrize("value", [3.0, np.float32(3), True, np.bool_(True), "3", None, [3], 2])
def test_what_is_no_whole_number(value):
    with pytest.raises(ArgumentError, match="n must be a whole number from 3, got"):
        whole_number("n", value, 3)


def test_numbers_of_numpy_make_the_same_model():
    plain = run(seed=3, evaluation=labelled(), evaluate_every=2)
    given = synq_fast.quantize(
        tiny_net(),
        "synq-digits",
        np.str_("w4a4"),
        input_shape=np.array(SHAPE),
        seed=np.int64(3),
        evaluation=labelled(),
        evaluate_every=np.int32(2),
        overrides={key: np.array(value) for key, value in TINY_OVERRIDES.items()},
        progress=False,
    )
    assert equal_states(plain.model, given.model)
    assert plain.history == given.history
    assert given.teacher.input_shape == SHAPE
    assert all(type(size) is int for size in given.teacher.input_shape)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"seed": 1.5}, ArgumentError, "seed must be a whole number, got 1.5"),
        ({"seed": True}, ArgumentError, "seed must be a whole number"),
        ({"seed": None}, ArgumentError, "seed must be a whole number"),
        ({"evaluate_every": -1}, ArgumentError, "evaluate_every must be a whole number from 0"),
        ({"evaluate_every": 0.5}, ArgumentError, "evaluate_every must be"),
        ({"device": 3.5}, SynqFastError, "cannot work on device"),
        ({"recipe": 3}, SynqFastError, "a name, a path or a Recipe"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(monkeypatch, options, error, match):
    def work(*args, **kwargs):
        raise AssertionError("worked")

    monkeypatch.setattr("synq_fast.engine.calls.Run", work)
    with pytest.raises(error, match=match):
        run(**options)


@pytest.mark.parametrize("seed", [-1, 2**64, -(10**30)])
def test_every_whole_number_is_a_seed(seed):
    from synq_fast.runtime.seeding import generator_for

    numbers = [torch.rand(3, generator=generator_for(s, "x")) for s in (seed, seed, 0)]
    assert torch.equal(numbers[0], numbers[1]) and not torch.equal(numbers[0], numbers[2])


@pytest.mark.parametrize("shape", [5, "2,8,8", (8, 8), (2.0, 8, 8), (2, 8, True), (0, 8, 8), None])
def test_shapes_that_are_none(shape):
    with pytest.raises(ModelError, match=r"input_shape|input shape"):
        synq_fast.load_teacher(tiny_net(), input_shape=shape)


def test_a_teacher_has_one_shape():
    teacher = synq_fast.load_teacher(tiny_net(), input_shape=list(SHAPE))
    assert synq_fast.load_teacher(teacher, input_shape=np.array(SHAPE)) is teacher
    with pytest.raises(ModelError, match="input_shape cannot be changed"):
        synq_fast.load_teacher(teacher, input_shape=(2, 16, 16))


@pytest.mark.parametrize("options", [{"batch_size": 2.5}, {"batch_size": 0}, {"workers": -1}])
def test_bad_numbers_of_an_evaluation(options):
    with pytest.raises(ArgumentError, match=f"{next(iter(options))} must be a whole number"):
        synq_fast.evaluate(tiny_net(), labelled(), **options)


def test_bad_device_of_an_evaluation():
    with pytest.raises(SynqFastError, match="cannot work on device"):
        synq_fast.evaluate(tiny_net(), labelled(), device="nonsense")
