import importlib.util
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
SMALL, BRANCHING, CRASHING = (
    f"tests.tools.networks:{name}" for name in ("small", "branching", "crashing")
)


@pytest.fixture(scope="module")
def tools():
    before = list(sys.path)
    loaded = []
    for name in ("try_model", "models_table"):
        spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        loaded.append(module)
    yield loaded
    sys.path[:] = before


def test_what_becomes_of_a_network(tools, monkeypatch):
    try_model, _ = tools
    row = try_model.attempt(SMALL)
    assert (row["result"], row["size"], row["note"]) == ("ok", 8, "")
    assert (row["coverage"]["placement"], row["coverage"]["weights"]) == ("after_relu", 3)
    row = try_model.attempt(BRANCHING)
    assert row["result"] == "refused" and "quantization.leaf_modules" in row["note"]
    monkeypatch.setattr(try_model, "fit_statistics", lambda *_: {}["a mistake of ours"])
    row = try_model.attempt(SMALL)
    assert row["result"] == "failed" and "KeyError" in row["traceback"]


def test_a_crash_is_a_row_and_finished_rows_stay(tools, tmp_path, monkeypatch):
    _, table = tools
    arguments = ["--cache", str(tmp_path / "rows"), "--output", str(tmp_path / "models.md")]
    arguments += ["--seconds", "3600"]
    assert table.main([SMALL, CRASHING, *arguments]) == 1
    page = (tmp_path / "models.md").read_text()
    assert "2 networks: 1 quantized, 1 failed." in page
    row = "| tests.tools.networks:small | 8 | after_relu | 3 of 3 | 1 of 3 |"
    assert f"{row} quantized, loaded, evaluated |" in page
    assert (
        "| tests.tools.networks:crashing |  |  |  |  | failed: the process ended with 3 |" in page
    )
    made = []
    monkeypatch.setattr(table, "attempt", lambda name, *limits: made.append(name) or refused(name))
    assert table.main([SMALL, CRASHING, *arguments]) == 0
    assert made == [CRASHING]
    assert len((tmp_path / "rows").read_text().splitlines()) == 3
    assert "1 quantized, 1 refused with a reason" in (tmp_path / "models.md").read_text()


def refused(name: str) -> dict[str, str]:
    return {"model": name, "result": "refused", "note": "why | and\nthe way out"}


def test_a_network_that_takes_too_long_is_a_row(tools):
    row = tools[1].attempt(SMALL, 0.01, 12.0, 1)
    assert (row["result"], row["note"]) == ("stopped", "not done after 0 s")


def test_notes_fit_into_a_cell(tools):
    page = tools[1].render([refused("timm/some"), refused("torchvision/other")])
    assert "| some |  |  |  |  | refused: why \\| and the way out |" in page
    assert "## timm" in page and "## torchvision" in page


def test_forty_families_and_all_of_torchvision():
    sys.path.insert(0, str(TOOLS))
    try:
        from model_names import TIMM, every_name
    finally:
        sys.path.remove(str(TOOLS))
    assert len(set(TIMM)) == len(TIMM) >= 40
    assert sum(name.startswith("torchvision/") for name in every_name()) >= 80
