"""Small matplotlib plots as inline SVG whose colours and font are the page's."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from synq_fast.reporting.figures.markup import markup

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins that matplotlib takes for colours; the page's style sheet says what they are.
INK, MUTED, LINE = "#010101", "#020202", "#030303"
FLOAT, QUANTIZED, THIRD, FOURTH, FIFTH, SIXTH = (f"#0400{n:02x}" for n in range(1, 7))
SERIES = (FLOAT, QUANTIZED, THIRD, FOURTH, FIFTH, SIXTH)
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line"} | {
    colour: f"--series-{n}" for n, colour in enumerate(SERIES, 1)
}


class Palette(NamedTuple):
    """Colours of a plot."""

    ink: str
    muted: str
    line: str
    series: tuple[str, ...]


OF_PAGE = Palette(INK, MUTED, LINE, SERIES)
OF_PICTURE = Palette(
    "#1c2026",
    "#59616d",
    "#d8dbe0",
    ("#0072b2", "#d55e00", "#00875f", "#a8558a", "#3d9bd1", "#8f6f00"),
)
"""Those of the page's light form, for pictures that know no style sheet."""
WIDTH = 340
"""Of a plot in CSS pixels: what a phone shows without scaling."""


def settings(palette: Palette = OF_PAGE) -> dict[Any, Any]:
    """What matplotlib is told about a plot in these colours."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "synq-fast",  # the same page from the same run
        "font.size": 10.5,
        "axes.edgecolor": palette.line,
        "axes.linewidth": 0.8,
        "axes.labelcolor": palette.muted,
        "axes.labelsize": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "xtick.color": palette.line,
        "ytick.color": palette.line,
        "xtick.labelcolor": palette.muted,
        "ytick.labelcolor": palette.muted,
        "grid.color": palette.line,
        "grid.linewidth": 0.6,
        "text.color": palette.ink,
        "lines.linewidth": 1.6,
        "path.simplify_threshold": 0.3,
    }


class Drawing:
    """A plot while it is drawn, then its SVG."""

    def __init__(self, figure: Figure, axes: Axes) -> None:
        """Of a figure with one pair of axes."""
        self.figure, self.axes = figure, axes
        self._svg = ""

    def finish(self) -> None:
        """Turn it into SVG."""
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        self.figure.savefig(buffer, format="svg", metadata=nothing)
        self._svg = buffer.getvalue()

    def svg(self, label: str, number: int) -> Markup:
        """The SVG element, with a text for those who do not see it.

        Args:
            label: what it shows.
            number: of the plot on its page, which keeps identifiers apart.
        """
        text = self._svg[self._svg.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
        text = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
        text = text.replace("xlink:href", "href")
        head, body = text.split(">", 1)
        found = re.search(r'viewBox="([^"]*)"', head)
        assert found is not None
        body = re.sub(r'\bid="', f'id="p{number}-', body)
        body = re.sub(r"url\(#", f"url(#p{number}-", body)
        body = re.sub(r'href="#', f'href="#p{number}-', body)
        for colour, variable in _VARIABLES.items():
            body = body.replace(colour, f"var({variable})")
        body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--font)", body)
        # A hundredth of a pixel is enough; what is between tags is said to people.
        body = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), body)
        body = re.sub(r"\s*\n\s*", "\n", body)
        return (
            markup('<svg class="plot" role="img" aria-label="{}" viewBox="')
            .format(label)
            .__add__(markup(found[1] + '">' + body))
        )


@contextmanager
def plot(height: int = 190, *, left: float = 46, bottom: float = 34) -> Iterator[Drawing]:
    """A plot of ``WIDTH`` by ``height`` CSS pixels; drawn inside the block, then finished.

    Margins are fixed: to have them found would take as long again as to draw.

    Args:
        height: of the whole.
        left: what the labels of the vertical axis take.
        bottom: what those of the horizontal axis take.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(settings()):
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        box = (left / WIDTH, bottom / height, 1 - (left + 10) / WIDTH, 1 - (bottom + 8) / height)
        drawing = Drawing(figure, figure.add_axes(box))
        yield drawing
        drawing.finish()


def label_line(axes: Any, x: float, text: str, on_the_left: bool) -> None:
    """Write beside an upright line at ``x`` what it stands for."""
    axes.annotate(
        text,
        (x, 1.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-4 if on_the_left else 4, 0),
        textcoords="offset points",
        va="top",
        ha="right" if on_the_left else "left",
    )


class Figures:
    """The plots of one page, numbered."""

    def __init__(self) -> None:
        """None yet."""
        self._numbers = itertools.count(1)

    def panel(self, title: str, drawing: Drawing, label: str, note: str = "") -> Panel:
        """A plot with a title above it."""
        return Panel(title, drawing.svg(label, next(self._numbers)), note)


class Panel(NamedTuple):
    """A plot as the page shows it."""

    title: str
    svg: Markup
    note: str = ""
    """Below it."""
