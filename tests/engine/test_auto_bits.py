"""Runs that find their widths: what they choose, keep, save, resume and refuse."""

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open

import synq_fast
from synq_fast.engine.comparison import compare
from synq_fast.errors import CheckpointError, RecipeError, RunFolderError
from synq_fast.optimize.loop import Loop
from synq_fast.quant.allocation import averages, choose
from synq_fast.quant.bits import AutoBits
from synq_fast.quant.widths import Widths, widths_of
from tests.tiny import SHAPE, TINY_OVERRIDES, equal_states, labelled, run, tiny_images, tiny_net

FEW = {"generator.steps": 2, "generator.batch_size": 6, "generator.latent": 5}
RECIPES = ("calibrate-digits", "gdfq-digits")


def small(recipe: str = "calibrate-digits", **options):
    overrides = {**(FEW if recipe == "gdfq-digits" else {}), **options.pop("overrides", {})}
    with warnings.catch_warnings():
        # The overrides of small runs are for every stage.
        warnings.filterwarnings("ignore", "(synthesis|generator|filter|finetune).* has no effect")
        return run(
            recipe=recipe, bits=options.pop("bits", "auto:3.5"), overrides=overrides, **options
        )


def sensitivity(**options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(synthesis|generator|filter|finetune).* has no effect")
        return synq_fast.sensitivity(
            tiny_net(),
            "calibrate-digits",
            SHAPE,
            overrides=TINY_OVERRIDES,
            progress=False,
            **options,
        )


def uniform(bits: int) -> Widths:
    return Widths(
        dict.fromkeys(("conv1", "conv2", "fc"), bits),
        dict.fromkeys(("quantize_relu", "quantize_relu_1"), bits),
    )


@pytest.fixture(scope="module")
def measured():
    return sensitivity()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto") / "run"
    return small(output=folder, evaluation=labelled()), folder


def test_widths_are_the_cheapest_by_the_measured_sensitivity(finished, measured):
    result, folder = finished
    chosen = widths_of(result.model)
    assert chosen == choose(measured, 3.5, uniform(2), uniform(8))
    assert result.bits == AutoBits(3.5) and measured.images == 8
    used = averages(measured.quantizers, chosen)
    assert result.metrics["average bits"] == used
    assert 3.0 < used["weights"] <= 3.5 and used["activations"] == 3.5

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["coverage"]["widths"] == {
        "weights": dict(chosen.weights),
        "activations": dict(chosen.activations),
    }
    assert json.loads((folder / "run.json").read_text())["bits"] == "auto:3.5"


def test_coverage_names_the_width_of_every_quantizer(finished):
    result, folder = finished
    covered = synq_fast.coverage(folder, tiny_net())
    assert covered.widths == widths_of(result.model)
    assert covered.lines() == synq_fast.coverage(result.model).lines()
    lines = [line for line in covered.lines() if " bits: " in line]
    for name, bits in covered.widths.weights.items():
        assert any(f"weights at {bits} bits: " in line and name in line for line in lines)
    uniform_model = small(bits="w4a4").model
    assert not any(" bits: " in line for line in synq_fast.coverage(uniform_model).lines())


def test_saved_and_loaded_it_computes_the_same_bits(finished, tmp_path):
    result, folder = finished
    images = tiny_images(5)
    for path in (folder, tmp_path / "model.safetensors"):
        if path is not folder:
            result.save(path)
        loaded = synq_fast.load(path, model=tiny_net(seed=3))
        assert widths_of(loaded) == widths_of(result.model)
        assert equal_states(loaded, result.model)
        assert torch.equal(loaded(images), result.model(images))


def test_saved_widths_of_other_layers_are_refused(finished, tmp_path):
    from safetensors.torch import save_file

    _, folder = finished
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        saved = json.loads(file.metadata()["synq_fast"])
    for kind, name in (("weights", "conv2"), ("activations", "quantize_relu_1")):
        other = json.loads(json.dumps(saved))
        del other["widths"][kind][name]
        path = tmp_path / f"{kind}.safetensors"
        save_file(tensors, path, {"synq_fast": json.dumps(other)})
        with pytest.raises(CheckpointError, match=f"does not fit .* no width .* {name}"):
            synq_fast.load(path, model=tiny_net())


def test_uniform_models_keep_no_widths_of_their_own(tmp_path):
    small(bits="w4a4").save(tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["synq_fast"])["widths"] is None


@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_at_any_work_it_ends_in_the_same_model(tmp_path, recipe):
    expected, advance = small(recipe), Loop.advance
    for title, after in (("sensitivity", 20), ("calibration", 1)):
        left = [after]

        def killed(self, title=title, left=left):
            if self.advice.title == title:
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
            return advance(self)

        folder = tmp_path / f"{title}-{after}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Loop, "advance", killed)
            with pytest.raises(KeyboardInterrupt):
                small(recipe, output=folder)
        resumed = small(recipe, output=folder, resume=True)
        assert widths_of(resumed.model) == widths_of(expected.model)
        assert equal_states(resumed.model, expected.model)
        assert resumed.history == expected.history


def test_a_checkpoint_of_other_widths_is_passed_over(finished, tmp_path):
    """The file fits in names and shapes; only the fingerprint tells the widths apart."""
    result, folder = finished
    other = tmp_path / "run"
    expected = small(bits="auto:2.5", output=other)
    for name in ("calibration.safetensors", "calibration.previous.safetensors"):
        if (folder / name).exists():
            (other / name).write_bytes((folder / name).read_bytes())
    again = small(bits="auto:2.5", output=other, resume=True)
    assert equal_states(again.model, expected.model)
    assert not equal_states(again.model, result.model)


def test_another_average_does_not_resume(finished):
    with pytest.raises(RunFolderError, match="another bits"):
        small(bits="auto:3.0", output=finished[1], resume=True)


def test_widths_that_the_recipe_fixes_stay_and_count():
    """With 126 of 450 weights and half of the activations at 6 bits, 3 and 2 are left for 4."""
    result = small(bits="auto:4.0", overrides={"quantization.end_bits": 6})
    assert widths_of(result.model) == Widths(
        {"conv1": 6, "conv2": 3, "fc": 6}, {"quantize_relu": 2, "quantize_relu_1": 6}
    )


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ("auto:1.0", "from 2 to 8, got '1.0'"),
        ("auto:9", "from 2 to 8, got '9'"),
        ("auto:nan", "from 2 to 8, got 'nan'"),
        ("auto:inf", "from 2 to 8, got 'inf'"),
        ("auto:", "from 2 to 8, got ''"),
        ("auto:four", "from 2 to 8, got 'four'"),
        ("auto", 'got None; for example bits="auto:4.0"'),
        ("auto4", 'bits must look like "w4a4"'),
        ("w=auto:4,a=8", 'bits must look like "w4a4"'),
    ],
)
def test_averages_that_cannot_be_meant(bits, message):
    with pytest.raises(RecipeError, match=message):
        small(bits=bits)


def test_averages_of_other_types_and_their_texts():
    assert str(AutoBits(4)) == str(AutoBits(np.float32(4))) == "auto:4.0"
    assert AutoBits(True + 1) == AutoBits(2.0)
    for value in (None, "w4", [4.0]):
        with pytest.raises(RecipeError, match="takes the average number of bits"):
            AutoBits(value)


def test_an_average_out_of_reach_is_refused_before_any_work(monkeypatch):
    from synq_fast.synthesis.synthesizer import Synthesizer

    monkeypatch.delattr(Synthesizer, "batch")
    with pytest.raises(RecipeError, match=r"auto:3\.0 is out of reach: .*end_bits.* the weights"):
        small(bits="auto:3.0", overrides={"quantization.end_bits": 8})
    with pytest.raises(RecipeError, match=r"the activations have at least 5 bits on average"):
        small(bits="auto:4.5", overrides={"quantization.layer_bits": ["conv2=w2a8"]})


def test_sensitivity_is_written_and_goes_on(tmp_path, monkeypatch, measured):
    folder, seen, advance = tmp_path / "measured", [], Loop.advance

    def killed(self):
        seen.append(self.done)
        if self.done == 12:
            raise KeyboardInterrupt
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            sensitivity(output=folder)
    found = sensitivity(output=folder)
    assert found == measured
    assert json.loads((folder / "sensitivity.json").read_text()) == found.as_dict()
    assert (folder / "sensitivity.md").read_text() == found.table() == str(found)
    rows = [line for line in found.table().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 5 and all(row.count(" | ") == 9 for row in rows)
    monkeypatch.setattr(Loop, "advance", None)
    assert sensitivity(output=folder) == found
    with pytest.raises(RunFolderError, match="another seed"):
        sensitivity(output=folder, seed=1)


def test_another_seed_gives_other_numbers(measured):
    assert sensitivity(seed=1).quantizers != measured.quantizers


def test_a_comparison_keeps_averages_apart(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(synthesis|generator|filter|finetune).* has no effect")
        found = compare(
            tiny_net(),
            ["calibrate-digits"],
            ["auto:3", "auto:3.5"],
            [0],
            labelled(),
            tmp_path,
            TINY_OVERRIDES,
            SHAPE,
            progress=False,
        )
    assert [row.bits for row in found.rows()] == ["auto:3.0", "auto:3.5"]
    folders = {path.name for path in (tmp_path / "TinyNet" / "calibrate-digits").iterdir()}
    assert folders == {"auto-3.0", "auto-3.5"}
