"""The build's decisions, read from setup.py without running it."""

import re
import runpy
from pathlib import Path

import pytest
import setuptools
import torch

ROOT = Path(__file__).resolve().parents[1]
TORCH_CONFIG = "share/cmake/Torch/TorchConfig.cmake"


@pytest.fixture
def build(monkeypatch, tmp_path):
    """setup.py's names, working in a folder that holds CMakeLists.txt alone."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    for name in ("SYNQ_FAST_REQUIRE_NATIVE", "SYNQ_FAST_NATIVE", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SYNQ_FAST_CUDA", "0")
    names = runpy.run_path(str(ROOT / "setup.py"))
    (tmp_path / "CMakeLists.txt").write_text((ROOT / "CMakeLists.txt").read_text())
    names["build_native"].__globals__["ROOT"] = tmp_path
    return names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("set_target_properties(torch PROPERTIES\n    CXX_STANDARD 20\n)", ("20", "")),
        (
            'set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=0")\n  CXX_STANDARD 17\n',
            ("17", "-D_GLIBCXX_USE_CXX11_ABI=0"),
        ),
        ("", ("17", "")),
        (None, ("17", "")),
    ],
)
def test_standard_and_abi_are_torchs(build, tmp_path, text, expected):
    config = tmp_path / TORCH_CONFIG
    if text is not None:
        config.parent.mkdir(parents=True)
        config.write_text(text)
    assert build["find_cxx_dialect"](tmp_path) == expected


def test_the_standard_is_what_the_headers_of_this_torch_ask(build):
    folder = Path(torch.__file__).parent
    header = (folder / "include" / "ATen" / "ATen.h").read_text()
    asked = {"17": "201703L", "20": "202002L", "23": "202302L"}
    standard, abi_option = build["find_cxx_dialect"](folder)
    assert f"__cplusplus < {asked[standard]}" in header
    # Without an option the compiler's own ABI is used, which is the new one.
    assert abi_option.endswith("0") != torch.compiled_with_cxx11_abi()


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("SYNQ_FAST_NATIVE", "0", "switched off by SYNQ_FAST_NATIVE=0 .*; unset it and reinstall"),
        ("CXX", "no-such-compiler", "no C\\+\\+ compiler was found .*no-such-compiler.*reinstall"),
        (
            "CXX",
            "false",
            "(?i)compiler.*the whole output: .*build\\.log.*; mend this and reinstall",
        ),
    ],
)
def test_a_build_that_falls_back_records_why(build, monkeypatch, variable, value, reason):
    monkeypatch.setenv(variable, value)
    module, info = build["build_native"]()
    assert module is None and info["native"] is False
    assert re.search(reason, info["reason"]), info
    monkeypatch.setenv("SYNQ_FAST_REQUIRE_NATIVE", "1")
    with pytest.raises(SystemExit, match=reason):
        build["build_native"]()


def test_what_kernels_read_is_packaged():
    text = (ROOT / "pyproject.toml").read_text()
    patterns = re.search(r'^"synq_fast.kernels" = \[(.*)\]$', text, re.MULTILINE)
    packaged = {pattern.strip(' "') for pattern in patterns[1].split(",")}
    manifest = (ROOT / "MANIFEST.in").read_text()
    archived = re.search(r"^recursive-include kernels (.*)$", manifest, re.MULTILINE)[1].split()
    suffixes = {f"*{path.suffix}" for path in (ROOT / "kernels").iterdir() if path.is_file()}
    assert suffixes == packaged | {"*.py"} == set(archived)
