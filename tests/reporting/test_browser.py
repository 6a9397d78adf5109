"""A page in a browser: nothing is asked for, everything fits, tables sort."""

import pytest

from tests.reporting.browser import WIDER, browser, check_page, executable, messages
from tests.reporting.runs import page_of

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium")

WIDTHS = [390, 1440]
PICTURES = """
({ all: document.images.length,
   loaded: [...document.images].filter((i) => i.complete && i.naturalWidth > 0).length,
   plots: document.querySelectorAll("svg.plot").length,
   drawn: [...document.querySelectorAll("svg.plot")].filter(
     (p) => p.querySelector("path") && p.getBoundingClientRect().height > 40).length })
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def column(index: int, title: str = "Weights of w4a4") -> str:
    return (
        f"[...document.querySelector('[aria-label=\"{title}\"] tbody').rows]"
        f".map((r) => r.cells[{index}].textContent)"
    )


def sorted_by(tab) -> list[str]:
    return tab.run(
        "[...document.querySelectorAll('[aria-label=\"Weights of w4a4\"] th')]"
        ".map((h) => h.getAttribute('aria-sort'))"
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_everything_is_there_and_fits(tab, finished_page, width, dark):
    check_page(tab, finished_page, width, dark)
    found = tab.run(PICTURES)
    assert found["loaded"] == found["all"] > 20 and found["drawn"] == found["plots"] > 10


def test_tables_sort_by_click(tab, finished_page):
    tab.open(finished_page, 1440)
    names = tab.run(column(0))
    assert names == ["conv1", "conv2", "fc"] and set(sorted_by(tab)) == {"none"}
    click = "document.querySelectorAll('[aria-label=\"Weights of w4a4\"] th button')[{}].click()"
    tab.run(click.format(4))
    counts = [int(text.replace(",", "")) for text in tab.run(column(4))]
    assert counts == sorted(counts) and counts[0] < counts[-1]
    assert sorted_by(tab)[4] == "ascending" and sorted_by(tab).count("none") == 10
    tab.run(click.format(4))
    again = [int(text.replace(",", "")) for text in tab.run(column(4))]
    assert again == counts[::-1] and sorted_by(tab)[4] == "descending"
    # By name, as texts.
    tab.run(click.format(0))
    assert tab.run(column(0)) == sorted(names) and sorted_by(tab)[4] == "none"
    assert messages(tab) == []


def test_tables_sort_by_keyboard(tab, finished_page):
    tab.open(finished_page, 1440)
    region = "document.querySelector('[aria-label=\"Weights of w4a4\"]')"
    tab.run(f"{region}.focus()")
    focused = "document.activeElement.textContent"
    titles = []
    for _ in range(5):
        tab.press("Tab", 9)
        titles.append(tab.run(focused))
    assert titles == ["layer", "#", "kind", "shape", "weights"]
    outline = tab.run("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    tab.press("Enter", 13)
    first = tab.run(column(4))
    assert sorted_by(tab)[4] == "ascending" and tab.run(focused) == "weights"
    tab.press(" ", 32)
    assert tab.run(column(4)) == first[::-1] and sorted_by(tab)[4] == "descending"


def test_what_has_no_number_stays_last(tab, finished_page):
    tab.open(finished_page, 1440)
    title, which = "Accuracy, every measurement", 5  # the best seen has no top-5
    for order in ("ascending", "descending"):
        tab.run(f"document.querySelectorAll('[aria-label=\"{title}\"] th button')[{which}].click()")
        values = tab.run(column(which, title))
        assert values[-1] == "\N{EN DASH}" and values.count("\N{EN DASH}") == 1
        numbers = [float(v) for v in values[:-1]]
        assert numbers == sorted(numbers, reverse=order == "descending")


@pytest.mark.parametrize("width", WIDTHS)
def test_unfinished_page_and_long_names_fit(tab, widths, tmp_path, width):
    folder = tmp_path / ("a-very-long-name-without-a-break-" * 4)
    folder.mkdir()
    (folder / "w2a2").symlink_to(widths / "w2a2", target_is_directory=True)
    page_of(folder)
    tab.open(folder.parent / f"{folder.name}.html", width)
    assert tab.run("document.documentElement.scrollWidth") == width and tab.run(WIDER) == []
