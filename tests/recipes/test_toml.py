"""Recipes are written without a package for it, in the form that such a package gives them."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synq_fast.recipes import dump_recipe, list_recipes, load_recipe
from synq_fast.recipes.toml import dumps

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = {
    "name": 'a "b" \\ \x00\x7f\n\té',
    "on": True,
    "rate": 1e-05,
    "count": 3,
    "none": (),
    "scale": [0.5, 1.0],
    "names": ("fc", "layer1.0"),
    "inner": {"x": 1, "deep": {"y": False}},
    "only-tables": {"one": {"z": -1.5}},
    "empty": {},
}
TEXT = r"""name = "a \"b\" \\ \u0000\u007f\n	é"
on = true
rate = 1e-05
count = 3
none = []
scale = [
    0.5,
    1.0,
]
names = [
    "fc",
    "layer1.0",
]

[inner]
x = 1

[inner.deep]
y = false

[only-tables.one]
z = -1.5

[empty]
"""


def test_text():
    assert dumps(TABLE) == TEXT
    assert dumps({}) == ""


def test_reads_back():
    assert tomllib.loads(dumps(TABLE)) == {**TABLE, "none": [], "names": ["fc", "layer1.0"]}


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_-]+", fullmatch=True),
        st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=9)
        | st.lists(st.text(max_size=4) | st.floats(allow_nan=False), max_size=3),
        max_size=5,
    )
)
def test_any_table_reads_back(table):
    table = {**table, "inner": dict(table)}
    assert tomllib.loads(dumps(table)) == table


@pytest.mark.parametrize("name", list_recipes())
def test_same_text_as_the_package(name):
    # Run folders of earlier versions hold its text, and resuming compares with it.
    tomli_w = pytest.importorskip("tomli_w")
    recipe = load_recipe(name)
    text = dump_recipe(recipe)
    assert text == tomli_w.dumps(tomllib.loads(text))
    assert dumps(TABLE) == tomli_w.dumps(TABLE)


def test_other_values_are_refused():
    with pytest.raises(TypeError, match="plain values alone, got set"):
        dumps({"x": {1}})
