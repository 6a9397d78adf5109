"""Write docs/recipes.md: what recipes can say, from the fields themselves.

python tools/recipes_page.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from synq_fast.recipes import list_recipes, load_recipe  # noqa: E402  (found by the line before)
from synq_fast.recipes.described import Description, descriptions  # noqa: E402

PAGE = ROOT / "docs" / "recipes.md"
_HEAD = """# Recipes

A recipe is a TOML file: the stages of a method, and the values of every part. `synq-fast recipes
NAME` prints one with all its values, `--set KEY=VALUE` (`overrides=` in Python) changes one. Losses
that a recipe does not name are not part of it; one that names none takes SynQ's. Made by `python
tools/recipes_page.py`.

| recipe | |
|---|---|
"""


def render() -> str:
    """The page."""
    lines = [_HEAD]
    lines += [f"| `{name}` | {load_recipe(name).summary} |\n" for name in list_recipes()]
    rows = list(descriptions())
    top = [row for row in rows if "." not in row.key and row.takes]
    lines += ["\n", *_table(top)]
    for section in (row for row in rows if not row.takes and row.default is None):
        own = [r for r in rows if r.key.rpartition(".")[0] == section.key and r.default is not None]
        lines += [f"\n## {section.key}\n\n{section.meaning}.\n\n", *_table(own)]
    return "".join(lines)


def _table(rows: list[Description]) -> list[str]:
    lines = ["| key | default | takes | meaning |\n", "|---|---|---|---|\n"]
    for row in rows:
        default = row.default
        shown = str(list(default) if isinstance(default, tuple) else default)
        shown = shown.lower() if isinstance(default, bool) else shown
        takes = row.takes.replace("|", "\\|")
        lines.append(f"| `{row.key}` | `{shown}` | {takes} | {row.meaning} |\n")
    return lines


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
