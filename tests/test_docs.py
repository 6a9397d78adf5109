"""The documentation says what is there: its code runs, its links lead somewhere."""

import re
from pathlib import Path

import pytest

from synq_fast import ops

ROOT = Path(__file__).parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])
TUTORIALS = ["quick_start.md", "own_model.md"]
_CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", TUTORIALS)
def test_every_block_of_a_tutorial_runs(page, tmp_path, monkeypatch, capsys):
    if page == "quick_start.md":
        pytest.importorskip("onnxscript", reason="the export extra is not installed")
        pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "tutorial"}
    blocks = _CODE.findall((ROOT / "docs" / page).read_text())
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    missing = []
    for link in _LINK.findall(page.read_text()):
        target = link.partition("#")[0]
        if target and "://" not in target and not (page.parent / target).exists():
            missing.append(link)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_on_every_page_is_python(page):
    for block in _CODE.findall(page.read_text()):
        compile(block, page.name, "exec")


def test_the_page_of_ops_has_every_public_one():
    text = (ROOT / "docs" / "ops.md").read_text()
    shown = set(re.findall(r"^::: synq_fast\.ops\S*\.(\w+)$", text, re.MULTILINE))
    assert shown == set(ops.__all__) - {"BackendUnavailableError"}


def test_the_menu_has_every_page():
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert pages == set(re.findall(r"^\s+- (\w+\.md)$", menu, re.MULTILINE))
