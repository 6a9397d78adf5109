import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from synq_fast import cli
from synq_fast.cli import main
from synq_fast.cli import suites as bench

pytest.importorskip("pytest_benchmark", reason="the benchmarks need pytest-benchmark")

PARTS = ["ops", "step", "blocks", "transformer", "synthesis"]


@pytest.fixture
def command(monkeypatch):
    """Keeps the command of the process that would measure; gives its last options."""
    seen = {}

    def remember(files, options):
        seen["suites"] = [path.stem for path in files]
        pairs = (option.removeprefix("--").partition("=") for option in options)
        seen["options"] = {name: value if equals else True for name, equals, value in pairs}
        return seen.get("passes", True)

    monkeypatch.setattr(bench, "_pytest", remember)
    return seen


def failing(capsys, *arguments: str) -> str:
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("synq-fast: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("part", PARTS)
def test_help_shows_an_example_that_parses(capsys, part):
    with pytest.raises(SystemExit) as caught:
        main(["bench", part, "--help"])
    assert caught.value.code == 0
    example = capsys.readouterr().out.partition("example:\n")[2].split()
    assert example[:3] == ["synq-fast", "bench", part]
    assert cli._parser().parse_args(example[1:]).part == part


def test_a_part_must_be_named(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench"])
    assert caught.value.code == 2
    assert "usage: synq-fast bench" in capsys.readouterr().err


def test_ops_are_all_suites_but_those_of_whole_steps(command):
    main(["bench", "ops"])
    assert "bench_fake_quantize" in command["suites"]
    assert "bench_call_overhead" in command["suites"]
    assert not {"bench_step", "bench_blocks", "bench_synthesis"} & set(command["suites"])


def test_options_reach_the_suites(command, tmp_path):
    path = tmp_path / "rows.json"
    arguments = ["--op", "fake_quantize", "--device", "cpu", "--threads", "1", "--rounds", "3"]
    main(["bench", "ops", *arguments, "--json", str(path)])
    assert command["suites"] == ["bench_fake_quantize"]
    wanted = {"device": "cpu", "threads": "1", "rounds": "3", "write-rows": str(path)}
    assert wanted.items() <= command["options"].items()


@pytest.mark.parametrize("part", PARTS[1:])
def test_whole_steps_have_their_own_suite(command, part):
    main(["bench", part])
    assert command["suites"] == [f"bench_{part}"]


@pytest.mark.parametrize("part", ["step", "synthesis"])
def test_the_workload_reaches_the_suite(command, part):
    main(["bench", part, "--model", "digits-resnet20", "--batch", "3", "--size", "16"])
    wanted = {"model": "digits-resnet20", "batch": "3", "size": "16"}
    assert wanted.items() <= command["options"].items()
    assert not {"switches", "aging"} & command["options"].keys()
    main(["bench", part, "--switches"])
    assert command["options"]["switches"] is True and "model" not in command["options"]


def test_aging_is_of_steps_alone(command, capsys):
    main(["bench", "step", "--aging"])
    assert command["options"]["aging"] is True
    for arguments in (
        ["synthesis", "--aging"],
        ["ops", "--model", "resnet18"],
        ["blocks", "--batch", "3"],
        ["transformer", "--batch", "3"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(["bench", *arguments])
        assert caught.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--model", "resnet_18"], "did you mean resnet18"),
        (["--model", "no.such:model"], "no.such"),
        (["--model", "vgg11", "--size", "7"], "(2, 3, 7, 7)"),
        (["--size", "0"], "--size must be at least 1, got 0"),
        (["--batch", "-1"], "--batch must be at least 1, got -1"),
    ],
)
def test_mistakes_about_the_workload_are_one_line(capsys, command, arguments, part):
    assert part in failing(capsys, "step", *arguments)
    assert command == {}


def test_an_unknown_op_lists_the_known_ones(capsys, command):
    message = failing(capsys, "ops", "--op", "fake_quantise")
    assert "fake_quantise" in message and ", fake_quantize" in message
    assert command == {}


def test_cuda_without_a_gpu(capsys, monkeypatch, command):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in failing(capsys, "ops", "--device", "cuda")
    assert command == {}


@pytest.mark.parametrize(
    ("module", "option", "extra"),
    [
        ("pytest_benchmark", [], "synq-fast[bench]"),
        ("matplotlib", ["--plot", "x.png"], "synq-fast[report]"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    capsys, monkeypatch, command, module, option, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    message = failing(capsys, "ops", *option)
    assert f'needs {module}: pip install "{extra}"' in message
    assert command == {}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--rounds", "1"], "--rounds must be at least 2"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--json", "missing/rows.json"], "missing/rows.json"),
        (["--json", "."], 'cannot write "."'),
    ],
)
def test_mistakes_are_one_line(capsys, command, arguments, part):
    assert part in failing(capsys, "ops", *arguments)
    assert command == {}


def test_without_the_suites(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "reinstall" in failing(capsys, "ops")


SUITE = """
import torch

def bench_thing(compare):
    x = torch.ones(100_000)
    assert {condition}, "the columns differ"
    compare("large", {{"ours (cpu)": x.clone, "clone": x.clone}}, ours="ours (cpu)", copy="clone",
            bytes_moved=800_000)
"""


def run_suite(tmp_path, monkeypatch, condition: str, *options: str):
    """Runs `synq-fast bench ops` on a folder with one suite, which uses the real ones' helpers."""
    spec = importlib.util.find_spec("synq_fast.benchmarks")
    assert spec is not None and spec.submodule_search_locations
    folder = tmp_path / "package" / "suites"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "conftest.py").write_text("from synq_fast.benchmarks.conftest import *\n")
    path = folder / "bench_thing.py"
    path.write_text(SUITE.format(condition=condition))
    monkeypatch.setattr(bench, "suites", lambda: {"thing": path})
    # The settings of the project that the command is run in are not for the suites.
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    return main(["bench", "ops", "--rounds", "3", *options])


@pytest.mark.slow
def test_progress_table_summary_and_files(tmp_path, monkeypatch, capfd):
    rows, chart = tmp_path / "rows.json", tmp_path / "chart.png"
    outputs = ["--json", str(rows), "--plot", str(chart), "--threads", "1", "--device", "cpu"]
    assert run_suite(tmp_path, monkeypatch, "x.sum() == 100_000", *outputs) == 0
    text = capfd.readouterr().out
    assert "[1/" in text and "thing: large [allocator: default]" in text
    assert "speed-up of ours over each rival" in text
    assert "slower than torch.compile at 65,536 elements and more: none" in text
    assert f"wrote {rows}" in text and f"wrote {chart}" in text
    content = json.loads(rows.read_text())
    assert content["environment"]["threads"] == 1
    assert content["rows"][0]["timings"]["ours (cpu)"]["rounds"] == 3
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {
        "package",
        "pytest.ini",
        "rows.json",
        "chart.png",
    }


@pytest.mark.slow
def test_a_failing_check_fails_the_command(tmp_path, monkeypatch, capfd):
    assert run_suite(tmp_path, monkeypatch, "x.sum() == 3", "--device", "cpu") == 1
    captured = capfd.readouterr()
    assert "FAILED" in captured.out and "the columns differ" in captured.out
    assert "not every benchmark passed its check" in captured.err


MODEL = "tests.benchmarks.workloads:resnet8"
SMALL = ["--model", MODEL, "--size", "16", "--batch", "4", "--rounds", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["step", "synthesis"])
def test_a_small_workload_from_end_to_end(tmp_path, capfd, part):
    path = tmp_path / "rows.json"
    given = [*SMALL, "--device", "cpu", "--threads", "1"]
    assert main(["bench", part, *given, "--json", str(path)]) == 0
    text = capfd.readouterr().out
    assert f"{MODEL} 16px batch 4" in text
    assert "where ours spends its time" in text and "of plain passes" in text
    content = json.loads(path.read_text())
    columns = content["rows"][0]["timings"]
    assert columns["ours"]["rounds"] == 2 and any("plain passes" in name for name in columns)
    titles = " ".join(table["title"] for table in content["tables"])
    assert ("peak memory" in titles and "parts of SynQ" in titles) == (part == "step")


@pytest.mark.slow
def test_the_switches_are_measured_instead(tmp_path, capfd):
    path = tmp_path / "rows.json"
    given = [*SMALL, "--device", "cpu", "--switches"]
    assert main(["bench", "synthesis", *given, "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    assert content["rows"] == [] and len(content["tables"]) == 1
    assert "copy_to_host" in {row[0] for row in content["tables"][0]["rows"]}
    assert "copy_to_host" in capfd.readouterr().out


def test_the_suites_refuse_cuda_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    suite = bench.suites()["fake_quantize"]
    command = [sys.executable, "-m", "pytest", "--device", "cuda", str(suite)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 4
    assert "no CUDA device" in done.stderr and "Traceback" not in done.stderr
