"""A page in a browser: nothing is asked for, everything fits, tables sort."""

import pytest

from tests.reporting.browser import browser, executable
from tests.reporting.runs import page_of

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium")

WIDTHS = [390, 1440]
# What sticks out of the page, unless an element around it scrolls by itself.
WIDER = """
[...document.body.querySelectorAll("*")].filter((e) => {
  if (e.closest("svg") && e.tagName !== "svg") return false;
  const box = e.getBoundingClientRect();
  if (box.width === 0 || (box.right <= innerWidth + 0.5 && box.left >= -0.5)) return false;
  return !e.parentElement.closest(".scroll");
}).map((e) => e.outerHTML.slice(0, 90))
"""
CUT = """
[...document.querySelectorAll("figure.panel, .facts div, figcaption, p, li, dd")]
  .filter((e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline")
  .map((e) => e.outerHTML.slice(0, 90))
"""
# Text of a plot beyond its edges would not be seen.
OUTSIDE = """
[...document.querySelectorAll("svg.plot text")].filter((e) => {
  const own = e.getBoundingClientRect(), all = e.closest("svg").getBoundingClientRect();
  return own.left < all.left - 2 || own.right > all.right + 2 || own.bottom > all.bottom + 2;
}).map((e) => e.textContent)
"""
PICTURES = """
({ all: document.images.length,
   loaded: [...document.images].filter((i) => i.complete && i.naturalWidth > 0).length,
   plots: document.querySelectorAll("svg.plot").length,
   drawn: [...document.querySelectorAll("svg.plot")].filter(
     (p) => p.querySelector("path") && p.getBoundingClientRect().height > 40).length })
"""
COLOURS = """
[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
 getComputedStyle(document.querySelector("svg.plot text")).fill]
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


def messages(tab) -> list[dict]:
    named = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    return [event for event in tab.events if event["method"] in named]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_everything_is_there_and_fits(tab, finished_page, width, dark):
    tab.open(finished_page, width, dark=dark)
    tab.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    found = tab.run(PICTURES)
    assert found["loaded"] == found["all"] > 20 and found["drawn"] == found["plots"] > 10
    assert tab.run("document.documentElement.scrollWidth") == width
    assert tab.run(WIDER) == [] and tab.run(CUT) == [] and tab.run(OUTSIDE) == []
    back, text, ink = tab.run(COLOURS)
    assert (sum(map(int, back[4:-1].split(","))) < 200) == dark
    assert (sum(map(int, text[4:-1].split(","))) > 500) == dark
    assert ink.startswith("rgb(") and ink not in ("rgb(0, 0, 0)", back)
    assert messages(tab) == []
    asked = [
        event["params"]["request"]["url"]
        for event in tab.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [finished_page.as_uri()]


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
