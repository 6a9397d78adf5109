import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synq_fast.errors import RecipeError
from synq_fast.quant import BitWidths


@given(weight=st.integers(2, 8), activation=st.integers(2, 8), upper=st.booleans())
def test_written_and_read_back(weight, activation, upper):
    widths = BitWidths(weight, activation)
    text = str(widths).upper() if upper else f" {widths} "
    assert BitWidths.parse(text) == widths


def test_widths_of_numpy_and_texts_of_other_classes():
    class Text(str):
        __slots__ = ()

    assert BitWidths.parse(Text("w3a5")) == BitWidths.parse(np.str_("w3a5")) == BitWidths(3, 5)
    widths = BitWidths(np.int64(3), np.uint8(5))
    assert widths == BitWidths(3, 5) and str(widths) == "w3a5"
    assert type(widths.weight) is int and type(widths.activation) is int


def test_parsed_widths_pass_through():
    widths = BitWidths(3, 5)
    assert BitWidths.parse(widths) is widths


@pytest.mark.parametrize(
    "bits",
    [
        0,
        1,
        17,
        4,
        True,
        None,
        4.0,
        "",
        "4",
        "w4",
        "a4w4",
        "w4a4x",
        "w-4a4",
        "w4 a4",
        "w4.0a4",
        b"w4a4",
    ],
    ids=repr,
)
def test_another_form_says_what_it_looks_like(bits):
    with pytest.raises(RecipeError, match='bits must look like "w4a4"'):
        BitWidths.parse(bits)


@pytest.mark.parametrize(
    ("text", "part"),
    [("w9a4", "weight"), ("w1a4", "weight"), ("w0a4", "weight"), ("w4a17", "activation"),
     ("w4a0", "activation"), ("w4a9", "activation")],
)  # fmt: skip
def test_width_out_of_bounds_names_the_part(text, part):
    with pytest.raises(RecipeError, match=f"{part} bits must be a whole number from 2 to 8"):
        BitWidths.parse(text)


@pytest.mark.parametrize("value", [True, 4.0, "4", None])
def test_width_of_another_type(value):
    with pytest.raises(RecipeError, match="weight bits must be a whole number"):
        BitWidths(value, 4)
