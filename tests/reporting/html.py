"""A page as its structure."""

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input"}


class Structure(HTMLParser):
    """Elements with their attributes, and the text of sections and cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, str | None]] = []
        self.sections: dict[str, str] = {}
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.elements.append((tag, values))
        if tag not in VOID:
            self.open.append((tag, values.get("id")))
        if tag == "section":
            self.sections[values["id"]] = ""
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop()[0] == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        tags = [tag for tag, _ in self.open]
        if "style" in tags or "script" in tags or "svg" in tags:
            return
        for tag, name in self.open:
            if tag == "section":
                self.sections[name] += data
        if ("td" in tags or "th" in tags) and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of a kind."""
        return [values for name, values in self.elements if name == tag]

    def table(self, first: str) -> list[dict[str, str]]:
        """Rows by column of the first table whose first header is ``first``."""
        found = next(t for t in self.tables if t and t[0] and t[0][0] == first)
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]
