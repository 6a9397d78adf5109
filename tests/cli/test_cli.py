import contextlib
import io
import json
import re
import shlex

import pytest
import torch
from safetensors.torch import save_file

import synq_fast
from synq_fast import cli
from synq_fast.cli import main
from synq_fast.cli.quantize import _print_metrics
from synq_fast.data import load_dataset
from synq_fast.finetune.training import Training
from synq_fast.synthesis.synthesizer import Synthesizer

TINY = [
    "synthesis.images=12",
    "synthesis.batch_size=6",
    "synthesis.steps=2",
    "quantization.calibration_batches=1",
    "quantization.calibration_batch_size=6",
    "finetune.steps=2",
    "finetune.batch_size=4",
]
SETTINGS = [part for text in TINY for part in ("--set", text)]
QUANTIZE = ["quantize", "--quiet", "--recipe", "synq-digits", *SETTINGS]
COMMANDS = [
    "quantize",
    "synthesize",
    "sensitivity",
    "evaluate",
    "compare",
    "study",
    "export",
    "report",
    "bench",
    "info",
    "recipes",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two bit widths of the embedded teacher, made by the command, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main([*QUANTIZE, "--bits", "w8a8", "w4a4", "--output", str(folder)])
    assert code == 0
    return folder, printed.getvalue()


def failing(capsys, *arguments: str) -> str:
    """Runs a command that the user can mend; returns its message."""
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("synq-fast: error: ")
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_parses(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    example = text.partition("example:\n")[2].replace("\\\n", " ").split()
    assert example[:2] == ["synq-fast", command]
    assert cli._parser().parse_args(example[1:]).command == command


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^ +{command}\s", text, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["quantise"], ["quantize", "--bitz", "w4a4"]])
def test_unknown_command_or_option_exits_with_usage(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: synq-fast" in capsys.readouterr().err


def test_quantize_prints_a_table_of_all_widths(finished):
    folder, printed = finished
    assert "digits-resnet20, synq-digits: top-1 in % on digits" in printed
    for column in ("float32", "post-training", "synq-digits (last step)", "seconds"):
        assert column in printed
    lines = re.findall(r"^│ (w\da\d) (.*)", printed, re.MULTILINE)
    rows = {bits: re.findall(r"\d+\.\d\d", row) for bits, row in lines}
    assert list(rows) == ["w8a8", "w4a4"]
    assert len(rows["w8a8"]) == 3 and float(rows["w8a8"][0]) > 95
    assert (folder / "w8a8" / "model.safetensors").exists()
    assert (folder / "w4a4" / "model.safetensors").exists()


def test_a_row_names_its_recipe_where_widths_have_several(capsys):
    counts = {name: {"top1": value} for name, value in (("float32", 90.0), ("quantized", 80.0))}
    rows = {bits: {**counts, "seconds": {"calibration": 2.0}} for bits in ("w8a8", "w4a4")}
    recipes = {"w8a8": "synq-fast-vit-8bit", "w4a4": "synq-fast-vit"}
    _print_metrics("net", recipes, "digits", rows)
    printed = " ".join(capsys.readouterr().out.split())
    assert "net, synq-fast-vit-8bit and synq-fast-vit: top-1 in % on digits" in printed
    for bits, recipe in recipes.items():
        assert re.search(rf"{bits} │ +{recipe} │ +90\.00 │ +80\.00 │ +2 ", printed), printed


def test_widths_share_one_bank(finished):
    folder, _ = finished
    assert len(list((folder / "bank").glob("shard-*"))) == 2
    assert not (folder / "w4a4" / "bank").exists()


def test_quiet_says_nothing_on_standard_error(capfd, tmp_path):
    assert main([*QUANTIZE, "--set", "finetune.steps=0"]) == 0
    assert capfd.readouterr().err == ""


def test_what_keeps_nothing_says_so_before_it_works(capsys, tmp_path, monkeypatch):
    def stopped(*args, **options):
        raise synq_fast.errors.SynqFastError("stopped")

    monkeypatch.setattr("synq_fast.engine.quantize", stopped)
    for output, said in (([], True), (["--output", str(tmp_path)], False)):
        assert main(["quantize", *output]) == 2
        assert ("no model is kept" in capsys.readouterr().err) is said


def test_evaluate_a_saved_run(finished, capsys):
    folder, _ = finished
    assert main(["evaluate", str(folder / "w8a8")]) == 0
    text = capsys.readouterr().out
    result = synq_fast.evaluate(synq_fast.load(folder / "w8a8"), _digits())
    assert text.startswith("quantized: 20 of 20 weight layers, 18 of 20 layer inputs")
    assert text.endswith(
        f"digits-resnet20 on digits: top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, "
        f"loss {result.loss:.4f}, 360 images\n"
    )


def test_export_a_saved_run(finished, capsys, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    # No test looks at a time.
    monkeypatch.setattr("synq_fast.deployment.latency._ROUNDS", 1)
    monkeypatch.setattr("synq_fast.deployment.latency._SECONDS", 0.0)
    folder, _ = finished
    file = tmp_path / "digits.onnx"
    assert main(["export", str(folder / "w4a4"), str(file), "--data", "digits", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "ONNX Runtime" in printed and "top-1 on 360 images" in printed
    # Quantized after ReLU alone, as published: the way to whole integers is named.
    assert "quantization.placement = integer quantizes it" in printed
    assert file.stat().st_size < 0.2 * 4 * 270_000


def test_export_says_what_8_bit_weights_need(finished, capsys, tmp_path):
    folder, _ = finished
    file = tmp_path / "digits.onnx"
    assert main(["export", str(folder / "w8a8"), str(file), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "8-bit weights need symmetric grids" in error and not file.exists()


@pytest.mark.parametrize(
    "option", [["--weights", "w.pt"], ["--model", "resnet18"], ["--input-shape", "3,8,8"]]
)
def test_evaluate_refuses_what_a_saved_model_holds_itself(finished, capsys, option):
    message = failing(capsys, "evaluate", finished[0] / "w8a8", *option)
    assert "--weights" in message and "holds a whole model" in message


def _digits():
    return load_dataset("digits", synq_fast.load_teacher("digits-resnet20"))


def test_evaluate_the_embedded_teacher(capsys):
    assert main(["evaluate"]) == 0
    text = capsys.readouterr().out
    assert float(re.search(r"top-1 ([\d.]+) %", text)[1]) > 95
    assert "360 images" in text


def test_evaluate_options_reach_the_evaluation(monkeypatch, capsys):
    from synq_fast.engine import evaluation

    given, original = [], evaluation.evaluate

    def noted(*args, **options):
        given.append(options)
        return original(*args, **options)

    monkeypatch.setattr(evaluation, "evaluate", noted)
    assert main(["evaluate", "--precision", "bf16", "--workers", "0", "--batch-size", "90"]) == 0
    assert {"precision": "bf16", "workers": 0, "batch_size": 90}.items() <= given[0].items()
    for mistake in (["--batch-size", "0"], ["--workers", "-1"], ["--workers", "many"]):
        with pytest.raises(SystemExit):
            main(["evaluate", *mistake])
        assert "expected a whole number from" in capsys.readouterr().err


def test_info_names_backends_and_version(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert synq_fast.__version__ in text and torch.__version__ in text
    for backend in synq_fast.ops.available_backends():
        assert backend in text


def test_recipes_lists_and_shows(capsys, tmp_path):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    for name in synq_fast.list_recipes():
        assert f"{name} " in listed
    assert main(["recipes", "synq-digits"]) == 0
    path = tmp_path / "synq-digits.toml"
    path.write_text(capsys.readouterr().out)
    assert synq_fast.load_recipe(path) == synq_fast.load_recipe("synq-digits")


def test_synthesize_makes_a_bank_that_quantize_takes(capsys, tmp_path, monkeypatch):
    assert main(["synthesize", "--quiet", *SETTINGS, "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"12 images in {tmp_path}\n"
    monkeypatch.delattr(Synthesizer, "batch")
    assert main([*QUANTIZE, "--bank", str(tmp_path)]) == 0


def test_seed_and_settings_reach_the_run(tmp_path):
    arguments = [
        *QUANTIZE,
        "--seed",
        "3",
        "--set",
        "filter.kind=none",
        "--output",
        str(tmp_path / "a"),
    ]
    assert main(arguments) == 0
    recipe = synq_fast.load_recipe(tmp_path / "a" / "w4a4" / "recipe.toml")
    assert recipe.filter.kind == "none" and recipe.synthesis.images == 12
    assert '"seed": "3"' in (tmp_path / "a" / "w4a4" / "run.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--model", "resnet999"], "resnet999"),
        (["--model", "cifar10-resnet20"], "--weights PATH"),
        (["--model", "no.such:thing"], "no.such:thing"),
        (["--recipe", "synq-nothing"], "synq-digits"),
        (["--set", "finetune.stepz=3"], 'did you mean "finetune.steps"'),
        (["--set", "finetune.steps"], "KEY=VALUE"),
        (["--set", "finetune.steps=many"], "a whole number"),
        (["--set", "finetune.learning_rate=nan"], "must be finite"),
        (["--bits", "w9a4"], "weight bits"),
        (["--bits", "4"], "w4a4"),
        (["--bits", "w4a4", "w1a4"], "weight bits"),
        (["--device", "nonsense"], 'cannot work on device "nonsense"'),
        (["--weights", "missing.safetensors"], "missing.safetensors"),
        (["--data", "missing-set"], "missing-set"),
        (["--resume"], "--output"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_mistakes_are_one_line(capsys, arguments, part):
    assert part in failing(capsys, *QUANTIZE, *arguments)


def test_existing_folder(capsys, finished):
    folder, _ = finished
    message = failing(capsys, *QUANTIZE, "--output", folder)
    assert "exists already" in message and "--resume" in message


def test_resume_of_another_run(capsys, finished):
    folder, _ = finished
    message = failing(
        capsys, *QUANTIZE, "--output", folder, "--resume", "--set", "finetune.steps=3"
    )
    assert "another recipe" in message


@pytest.mark.parametrize("kind", ["missing", "text", "float"])
def test_evaluate_what_is_no_quantized_model(capsys, tmp_path, kind):
    path = tmp_path / "model.safetensors"
    if kind == "text":
        path.write_text("hello")
    elif kind == "float":
        save_file({"x": torch.zeros(2)}, path)
    assert "model.safetensors" in failing(capsys, "evaluate", path)


def test_evaluate_needs_images(capsys):
    message = failing(capsys, "evaluate", "--model", "resnet18", "--weights", "random")
    assert "--data" in message


def _interrupt(monkeypatch):
    def stop(self, step):
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "prepare", stop)


def test_interrupt_prints_the_command_that_continues(capsys, tmp_path, monkeypatch):
    folder = tmp_path / "my runs"
    arguments = [*QUANTIZE, "--bits", "w8a8", "w4a4", "--output", str(folder)]
    with monkeypatch.context() as patch:
        _interrupt(patch)
        assert main(arguments) == 130
    message = capsys.readouterr().err
    assert "Traceback" not in message
    command = shlex.split(message.partition("continue with: ")[2])
    assert command == ["synq-fast", *arguments, "--resume"]
    assert main(command[1:]) == 0
    assert (folder / "w4a4" / "model.safetensors").exists()
    # What was done is not done again, and the same command still works.
    monkeypatch.delattr(Synthesizer, "batch")
    assert main(command[1:]) == 0


def test_sensitivity_prints_a_table_and_goes_on(capsys, tmp_path, monkeypatch):
    folder = tmp_path / "measured"
    few = (part for text in TINY[:5] for part in ("--set", text))
    arguments = ["sensitivity", "--recipe", "calibrate-digits", "--quiet", *few]
    arguments += ["--output", str(folder)]
    with monkeypatch.context() as patch:
        patch.setattr(torch, "log_softmax", _stop)
        assert main(arguments) == 130
    command = shlex.split(capsys.readouterr().err.partition("continue with: ")[2])
    assert command == ["synq-fast", *arguments]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed == (folder / "sensitivity.md").read_text()
    measured = json.loads((folder / "sensitivity.json").read_text())
    assert [measured[k] for k in ("network", "recipe", "seed", "images")] == [
        "digits-resnet20", "calibrate-digits", 0, 6,
    ]  # fmt: skip
    assert [each["kind"] for each in measured["quantizers"]] == ["weights"] * 20 + [
        "activations"
    ] * 19
    for each in measured["quantizers"]:
        assert list(each["losses"]) == list("2345678")
        assert each["losses"]["8"] < 1e-2 * each["losses"]["2"]
        assert f"| {each['name']} | {each['kind']} | {each['size']} |" in printed


def test_quantize_at_an_average(capsys, tmp_path):
    arguments = [*QUANTIZE, "--set", "finetune.steps=0", "--output", str(tmp_path / "runs")]
    assert main([*arguments, "--bits", "AUTO:3"]) == 0
    printed = capsys.readouterr().out
    assert "│ auto:3.0 │" in printed and f"{tmp_path / 'runs' / 'auto-3.0'}\n" in printed
    assert main(["evaluate", str(tmp_path / "runs" / "auto-3.0")]) == 0
    assert re.search(r"^  weights at 2 bits: .*layer", capsys.readouterr().out, re.MULTILINE)
    assert "from 2 to 8, got '1.0'" in failing(capsys, *QUANTIZE, "--bits", "auto:1.0")


def _stop(*args, **options):
    raise KeyboardInterrupt


def test_interrupt_of_a_comparison_says_how_to_go_on(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("synq_fast.engine.comparison.compare", _stop)
    given = ["compare", "--recipes", "synq-digits", "--output", str(tmp_path / "a table")]
    assert main(given) == 130
    message = capsys.readouterr().err
    assert shlex.split(message.partition("continue with: ")[2]) == ["synq-fast", *given]


def test_interrupt_without_a_folder_says_how_to_have_one(capsys, monkeypatch):
    _interrupt(monkeypatch)
    assert main(QUANTIZE) == 130
    message = capsys.readouterr().err
    assert "--output FOLDER" in message and "continue with" not in message


def test_interrupt_of_a_command_that_writes_nothing(capsys, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("synq_fast.engine.evaluation.evaluate", stop)
    assert main(["evaluate"]) == 130
    assert capsys.readouterr().err == "\nsynq-fast: stopped.\n"


def test_unexpected_errors_are_not_hidden(monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError

    monkeypatch.setattr("synq_fast.models.load_teacher", broken)
    with pytest.raises(ZeroDivisionError):
        main(["evaluate"])
