"""The notebook runs from its first cell to its last."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "tutorial.ipynb"


def test_every_cell_runs(tmp_path, monkeypatch, capsys):
    matplotlib = pytest.importorskip("matplotlib", reason="the report extra is not installed")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(tmp_path)
    before = matplotlib.get_backend()
    matplotlib.use("agg")
    try:
        names: dict[str, object] = {"__name__": "notebook"}
        cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
        for cell in cells:
            assert not cell["outputs"]
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
        assert len(pyplot.get_fignums()) == 2
    finally:
        pyplot.close("all")
        matplotlib.use(before)
    text = capsys.readouterr().out
    assert "quantized:" in text and "similarity of the maps" in text
