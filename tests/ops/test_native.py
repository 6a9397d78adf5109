"""What is said where the native kernels are missing, whatever the cause."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from synq_fast.errors import SynqFastWarning
from synq_fast.ops import _backend, _native
from synq_fast.runtime.progress import Reporter
from tests.ops.processes import NOT_BUILT
from tests.tiny import run

ROOT = Path(__file__).resolve().parents[2]
BUILT = {"native": True, "reason": "", "cuda_reason": "", "torch": torch.__version__}
FAULTS = {
    "never built": (None, "not built, or not to the end; run `pip install"),
    "record cut off": ('{"native": tr', "not built, or not to the end; run `pip install"),
    "record of another kind": ("[]", "not built, or not to the end; run `pip install"),
    "build failed": (
        json.dumps(BUILT | {"native": False, "reason": "no C++ compiler was found"}),
        "no C\\+\\+ compiler was found",
    ),
    "build without a reason": (json.dumps({"native": False}), "run `pip install"),
    "another torch": (
        json.dumps(BUILT | {"torch": "2.6.0"}),
        "built for torch 2.6.0, running .*; run `pip install",
    ),
    "does not load": (json.dumps(BUILT), "cannot be loaded \\(.*_C.*\\); run `pip install"),
}


@pytest.fixture
def record(monkeypatch, tmp_path):
    """Writes the build's record and lets no extension load."""
    path = tmp_path / "_build_info.json"
    monkeypatch.setattr(_native, "BUILD_RECORD", path)
    monkeypatch.setitem(sys.modules, "synq_fast._C", None)
    monkeypatch.delenv("SYNQ_FAST_NATIVE", raising=False)
    return path


@pytest.mark.parametrize("fault", FAULTS)
def test_a_missing_extension_is_said_with_its_reason_and_the_way_out(record, fault):
    text, reason = FAULTS[fault]
    if text is not None:
        record.write_text(text)
    with pytest.warns(
        SynqFastWarning, match=f"plain PyTorch.*{reason}.*SYNQ_FAST_NATIVE=0"
    ) as said:
        extension, why = _native.load()
    assert extension is None and why in str(said[0].message) and len(said) == 1


def test_who_means_it_is_not_told_again(record, monkeypatch):
    monkeypatch.setenv("SYNQ_FAST_NATIVE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _native.load() == (None, "switched off by SYNQ_FAST_NATIVE=0")


def test_the_first_import_says_it_once():
    code = f"{NOT_BUILT}\nimport synq_fast.ops\nfrom synq_fast import ops"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SYNQ_FAST_", "PYTHONW"))}
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=clean,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    assert said.count("SynqFastWarning: synq-fast runs without its native kernels") == 1
    assert said.count("several times slower: no compiler.") == 1


BARE = {"cpu": "no compiler", "cuda": "nvcc was not found", "triton": None}
NO_TRITON = BARE | {"triton": "Triton is not installed"}
FULL = dict.fromkeys(BARE)


@pytest.mark.parametrize(
    ("missing", "device", "expected"),
    [
        (FULL, "cpu", ("cpu", None)),
        (FULL, "cuda", ("cuda", None)),
        (BARE, "cpu", ("reference", "no cpu kernels: no compiler")),
        (BARE, "cuda", ("triton", "no cuda kernels: nvcc was not found")),
        (
            NO_TRITON,
            "cuda",
            (
                "reference",
                "no cuda kernels: nvcc was not found; no triton kernels: Triton is not installed",
            ),
        ),
        (FULL, "mps", ("reference", "there are no kernels for mps devices")),
    ],
)
def test_kernels_on_a_device(monkeypatch, missing, device, expected):
    monkeypatch.setattr(_backend, "_choice", "auto")
    monkeypatch.setattr(_backend, "_NOT_BUILT", missing)
    monkeypatch.setattr(_backend, "_BUILT", {k: v is None for k, v in missing.items()})
    assert _backend.kernels_on(torch.device(device)) == expected


def test_a_choice_is_what_runs():
    with _backend.backend("reference"):
        assert _backend.kernels_on(torch.device("cpu"))[0] == "reference"


def test_every_run_prints_and_records_it(monkeypatch, tmp_path):
    lines = []
    monkeypatch.setattr(Reporter, "line", lambda self, text: lines.append(text))
    monkeypatch.setattr(_backend, "_choice", "auto")
    monkeypatch.setattr(_backend, "_NOT_BUILT", BARE)
    monkeypatch.setattr(_backend, "_BUILT", {k: v is None for k, v in BARE.items()})
    result = run(output=tmp_path / "run")
    reason = "no cpu kernels: no compiler"
    assert f"kernels: plain PyTorch, several times slower ({reason})" in lines
    assert result.metrics["kernels"] == {"backend": "reference", "reason": reason}
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written["kernels"] == result.metrics["kernels"]


def test_lines_are_printed_as_they_are(capsys):
    Reporter().line("kernels: plain PyTorch (error: x [-Werror=y] in [/usr/include])")
    assert "(error: x [-Werror=y] in [/usr/include])" in capsys.readouterr().err
