import inspect
import re

import pytest

from synq_fast import ops
from synq_fast.testing import CASES

pytest.importorskip("matplotlib", reason="the pictures need matplotlib")

from PIL import Image

from tools import ops_page
from tools.op_pictures import canvas


def test_page_is_what_the_script_writes():
    message = "run: python tools/ops_page.py"
    assert ops_page.PAGE.read_text(encoding="utf-8") == ops_page.render(), message


def test_every_op_has_a_picture_and_a_speed():
    assert ops_page.ENTRIES.keys() == CASES.keys()
    after = re.split(r"^::: \S+\.(\w+)$", ops_page.render(), flags=re.MULTILINE)
    shown = dict(zip(after[1::2], after[2::2], strict=True))
    for name in CASES:
        assert re.search(rf"^!\[.{{40,}}\]\(ops/{name}\.png\)$", shown[name], re.MULTILINE), name
        assert re.search(r"^Speed: |: times faster than \|", shown[name], re.MULTILINE), name


def test_pictures_are_small_and_no_others_lie_there():
    files = sorted(ops_page.PICTURES.iterdir())
    assert [file.name for file in files] == sorted(f"{name}.png" for name in CASES)
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) < 40_000 and sum(sizes) < 1_000_000


@pytest.mark.parametrize("name", CASES)
def test_docstring_has_shapes_and_source(name):
    text = inspect.getdoc(getattr(ops, name))
    assert re.search(r"^Source: ", text, re.MULTILINE)
    # Shapes stand as such, or in words where any will do.
    arguments = text.partition("Args:")[2]
    assert re.search(r"`\([\w.]+, |[Aa]ny shape|one element|At least one dimension", arguments)


def test_speed_is_that_of_the_result_file(monkeypatch):
    entry = ops_page.ENTRIES["fake_quantize"]
    rows = [row for row in ops_page._rows("fake_quantize") if row.case == entry.case]
    ratios = [
        row.timings["reference, torch.compile"].median / row.timings["ours (cpu)"].median
        for row in rows
    ]
    assert len(ratios) == 2
    assert f"| {ratios[0]:.2f} / {ratios[1]:.2f} |" in ops_page.speed("fake_quantize")
    monkeypatch.setitem(ops_page.ENTRIES, "fake_quantize", entry._replace(case="another"))
    with pytest.raises(KeyError, match="no row 'another'"):
        ops_page.speed("fake_quantize")


def test_all_that_have_kernels_are_measured():
    assert [name for name, entry in ops_page.ENTRIES.items() if entry.suite is None] == [
        "read_range"
    ]


def test_a_picture_can_be_drawn(tmp_path):
    path = tmp_path / "picture.png"
    canvas.save(ops_page.ENTRIES["relu_fake_quantize"].picture, path)
    with Image.open(path) as drawn:
        assert drawn.width == round(canvas.WIDTH * canvas.DPI)
        assert len(drawn.convert("RGB").getcolors()) > 10
