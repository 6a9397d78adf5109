import dataclasses
import os

import pytest
import torch

from synq_fast.errors import NonFiniteLossError, OutOfMemoryError, StorageError, SynqFastWarning
from synq_fast.synthesis.kept import Kept
from synq_fast.synthesis.losses import classes
from synq_fast.synthesis.settings import Centers, Synthesis
from synq_fast.synthesis.synthesizer import Synthesizer
from tests.faults.disk import full_disk
from tests.tiny import tiny_synthesizer

# A patience of 0 lets the rate fall within these steps.
RECIPE = Synthesis(
    images=12,
    batch_size=6,
    steps=12,
    patience=0,
    augment_probability=0.5,
    centers=Centers(weight=0.5, steps=5),
)


def synthesizer(folder=None, recipe=RECIPE, seconds=0.0) -> Synthesizer:
    return tiny_synthesizer(recipe, kept=Kept(folder, seconds) if folder else None)


def stop_at(patch: pytest.MonkeyPatch, step: int, error: type[BaseException]) -> list[float]:
    """Raises at the beginning of an optimization's step; notes the rate of every step before."""
    rates = []
    step_of = torch.optim.Adam.step

    def stopping(optimizer, *args):
        if len(rates) == step:
            raise error("stop")
        rates.append(float(optimizer.param_groups[0]["lr"]))
        return step_of(optimizer, *args)

    patch.setattr(torch.optim.Adam, "step", stopping)
    return rates


@pytest.mark.parametrize("stop", [1, 4, 11])
def test_batch_goes_on_where_it_was_killed(tmp_path, monkeypatch, stop):
    with monkeypatch.context() as patch:
        rates = stop_at(patch, 99, KeyboardInterrupt)
        expected, labels = synthesizer().batch(0, 6)
    assert len(set(rates)) > 1
    with monkeypatch.context() as patch:
        first = stop_at(patch, stop, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            synthesizer(tmp_path).batch(0, 6)
    with monkeypatch.context() as patch:
        second = stop_at(patch, 99, KeyboardInterrupt)
        maker, seen = synthesizer(tmp_path), []
        images, again = maker.batch(0, 6, lambda record: seen.append(record["step"]))
    assert first + second == rates
    assert torch.equal(images, expected) and torch.equal(labels, again)
    assert seen[0] == stop and seen[-1] == 12
    maker.forget(0)
    assert os.listdir(tmp_path) == []


def test_nothing_is_written_before_it_is_due(tmp_path):
    synthesizer(tmp_path, seconds=1e6).batch(0, 6)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("both", [False, True])
def test_damaged_checkpoint_costs_steps_and_is_said(tmp_path, monkeypatch, both):
    expected = synthesizer().batch(0, 6)[0]
    with monkeypatch.context() as patch:
        stop_at(patch, 5, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            synthesizer(tmp_path).batch(0, 6)
    for name in ["", ".previous"][: 2 if both else 1]:
        path = tmp_path / f"shard-00000.partial{name}.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
    message = "synthesis begins again" if both else "going on from the one before"
    with monkeypatch.context() as patch:
        rates = stop_at(patch, 99, KeyboardInterrupt)
        with pytest.warns(SynqFastWarning, match=message):
            images = synthesizer(tmp_path).batch(0, 6)[0]
    assert len(rates) == (12 if both else 12 - 4)
    assert torch.equal(images, expected)


def centers(maker: Synthesizer) -> list[torch.Tensor]:
    maker.make_centers()
    return [value for pair in maker.center_targets for value in pair]


@pytest.mark.parametrize("stop", [3, 5, 7, 10])
def test_centres_are_not_made_twice(tmp_path, monkeypatch, stop):
    """Three classes in batches of two: two optimizations of five steps."""
    recipe = dataclasses.replace(RECIPE, batch_size=2)
    expected = centers(synthesizer(recipe=recipe))
    with monkeypatch.context() as patch:
        stop_at(patch, stop, KeyboardInterrupt)
        if stop == 10:
            patch.setattr(Synthesizer, "_pooled_statistics", None)
        with pytest.raises((KeyboardInterrupt, TypeError)):
            centers(synthesizer(tmp_path, recipe))
    with monkeypatch.context() as patch:
        rates = stop_at(patch, 99, KeyboardInterrupt)
        maker = synthesizer(tmp_path, recipe)
        assert all(map(torch.equal, centers(maker), expected))
        assert len(rates) == 10 - stop
        assert all(map(torch.equal, centers(maker), expected))
        assert len(rates) == 10 - stop
    assert sorted(os.listdir(tmp_path)) == [
        "centers-00000.safetensors",
        "centers-00001.safetensors",
    ]


def test_damaged_centres_are_made_again_and_it_is_said(tmp_path):
    expected = centers(synthesizer(tmp_path))
    path = tmp_path / "centers-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(SynqFastWarning, match=r"centers-00000\.safetensors is damaged"):
        assert all(map(torch.equal, centers(synthesizer(tmp_path)), expected))


def test_centre_progress_counts_what_is_kept(tmp_path):
    centers(synthesizer(tmp_path))
    seen = []
    synthesizer(tmp_path).make_centers(lambda record: seen.append(record["step"]))
    assert seen == [5]


def test_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    expected = synthesizer().batch(0, 6)[0]
    with monkeypatch.context() as patch:
        full_disk(patch, after=6)
        with pytest.raises(StorageError, match=r"shard-00000\.partial\.safetensors: No space"):
            synthesizer(tmp_path).batch(0, 6)
    with monkeypatch.context() as patch:
        rates = stop_at(patch, 99, KeyboardInterrupt)
        assert torch.equal(synthesizer(tmp_path).batch(0, 6)[0], expected)
    assert len(rates) == 12 - 3


def test_images_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    """The loss of the step is finite; its update is what breaks."""
    step_of, done = torch.optim.Adam.step, []

    def broken(optimizer, *args):
        step_of(optimizer, *args)
        done.append(1)
        if len(done) == 4:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0][0] = torch.nan

    monkeypatch.setattr(torch.optim.Adam, "step", broken)
    with pytest.raises(NonFiniteLossError, match="images are not finite after step 4"):
        synthesizer(tmp_path).batch(0, 6)
    found = Kept(tmp_path, 0.0).checkpoint("shard-00000").read()
    assert found[1]["step"] == "3" and found[0]["images.images"].isfinite().all()


def test_memory_that_runs_out_names_the_setting(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(classes, "focal_class_loss", full)
    advice = r"synthesis ran out of memory \(CUDA.*9 GiB\.\); .*lower synthesis\.batch_size"
    with pytest.raises(OutOfMemoryError, match=advice):
        synthesizer().batch(0, 6)
