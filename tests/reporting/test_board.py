"""TensorBoard's files: the log again, once, whatever happened to the run."""

import json
import sys

import numpy as np
import pytest

import synq_fast
from synq_fast.cli import main
from synq_fast.errors import MissingExtraError, RunFolderError
from synq_fast.optimize.loop import Loop
from synq_fast.reporting.board import Board
from synq_fast.storage.history import History
from tests.reporting.runs import interrupted, small
from tests.tiny import SHAPE, TINY_OVERRIDES, equal_states, run

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def shown(folder):
    """The points of every scalar, and the images."""
    size = dict.fromkeys(("scalars", "images"), 0)
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance=size)
    events.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    return scalars, {tag: events.Images(tag) for tag in events.Tags()["images"]}


def expected(*logs):
    """The same from the log's files."""
    points = {}
    for log in logs:
        for record in History(log).records():
            whose = [record["stage"], record.get("block"), record.get("batch")]
            if whose[2] is not None:
                whose[2] = f"batch-{whose[2]:05d}"
            prefix = "/".join(part for part in whose if part is not None)
            for name, value in record.items():
                if name not in ("stage", "block", "batch", "step"):
                    points.setdefault(f"{prefix}/{name}", []).append(
                        (record["step"], float(np.float32(value)))
                    )
    return points


BLOCKS = {
    "stages": ["synthesis", "calibration", "blocks", "finetune"],
    "quantization.weight_range": "learned",
    "quantization.learn_ranges": True,
    "blocks.images": 8,
    "blocks.steps": 3,
    "blocks.batch_size": 4,
}


def test_the_same_records_as_the_log_and_images(tmp_path):
    plain = run(overrides=BLOCKS)
    result = small(tmp_path, overrides=BLOCKS, tensorboard=True)
    assert equal_states(plain.model, result.model) and plain.history == result.history
    scalars, images = shown(tmp_path)
    assert scalars == expected(tmp_path / "log.jsonl", *(tmp_path / "bank").glob("batch-*.jsonl"))
    assert {"finetune/kl", "blocks/relu_1/local", "synthesis/batch-00001/classes"} <= set(scalars)
    assert set(images) == {"images/synthetic", "images/low-pass"}
    # A sheet of the twelve, eight in a row.
    (picture,) = images["images/low-pass"]
    assert (picture.width, picture.height) == (8 * SHAPE[2], 2 * SHAPE[1])


@pytest.mark.parametrize("recipe", ["synq-digits", "gdfq-digits"])
def test_resumed_run_has_every_point_once(tmp_path, recipe):
    few = {"generator.steps": 12, "generator.batch_size": 6, "generator.latent": 5}
    options = {"recipe": recipe, "overrides": few if recipe == "gdfq-digits" else {}}
    small(tmp_path / "whole", tensorboard=True, **options)
    whole, _ = shown(tmp_path / "whole")
    assert all(len(set(steps)) == len(steps) for steps in whole.values()) and len(whole) > 5
    steps, advance = [], Loop.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "advance", lambda self: steps.append(1) or advance(self))
        small(tmp_path / "counted", **options)
    # While images are made, and while they are used.
    for kill_at in (len(steps) // 3, len(steps) - 2)[recipe == "gdfq-digits" :]:
        folder = tmp_path / str(kill_at)
        interrupted(folder, kill_at, tensorboard=True, **options)
        small(folder, tensorboard=True, resume=True, **options)
        assert shown(folder)[0] == whole, kill_at


def test_images_that_are_there_already_keep_their_records(tmp_path):
    bank = tmp_path / "bank"
    small(tmp_path / "first", bank=bank, tensorboard=True)
    small(tmp_path / "second", bank=bank, bits="w2a2", tensorboard=True)
    first, second = (shown(tmp_path / name)[0] for name in ("first", "second"))
    of_images = {tag for tag in first if tag.startswith("synthesis/")}
    assert of_images and all(first[tag] == second[tag] for tag in of_images)


def test_missing_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r'pip install "synq-fast\[tensorboard\]"'):
        Board(tmp_path / "board")
    with pytest.raises(MissingExtraError, match="--tensorboard"):
        small(tmp_path / "run", tensorboard=True)
    # Before any work.
    assert not (tmp_path / "run").exists()


def test_it_needs_a_folder(capsys):
    with pytest.raises(RunFolderError, match="name it with output"):
        synq_fast.quantize("digits-resnet20", tensorboard=True)
    assert main(["quantize", "--tensorboard"]) == 2
    assert "--output" in capsys.readouterr().err


def test_command(tmp_path):
    settings = [part for k, v in TINY_OVERRIDES.items() for part in ("--set", f"{k}={v}")]
    shape = ",".join(map(str, SHAPE))
    named = ["--model", "tests.tiny:tiny_net", "--input-shape", shape, "--recipe", "synq-digits"]
    output = ["--output", str(tmp_path), "--tensorboard", "--quiet"]
    assert main(["quantize", *named, *settings, *output]) == 0
    folder = tmp_path / "w4a4"
    assert shown(folder)[0] == expected(
        folder / "log.jsonl", *(tmp_path / "bank").glob("batch-*.jsonl")
    )
    assert json.loads((folder / "about.json").read_text())["bank"] == "../bank"
