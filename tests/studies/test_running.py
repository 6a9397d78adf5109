"""One command: kept parts, files, pages, errors."""

import json
import re
import warnings

import pytest

import synq_fast
from synq_fast.cli import main
from synq_fast.errors import ArgumentError, DataError, MissingExtraError, RecipeError
from synq_fast.reporting.figures.chart import Chart, Series, legend, panels
from synq_fast.reporting.figures.plot import Figures
from synq_fast.studies import STUDIES, noise, spectra
from tests.reporting.html import Structure
from tests.studies.small import OPTIONS, real, small
from tests.tiny import SHAPE, TINY_OVERRIDES, labelled, tiny_net, tiny_teacher
from tests.transformers import tiny_vit

NAMES = tuple(STUDIES)


@pytest.mark.parametrize("name", NAMES)
def test_files_say_the_same(found, name):
    result = found[name]
    assert result.page_path is not None and result.page_path.name == f"{name}.html"
    place = result.page_path.parent
    kept = json.loads((place / f"{name}.json").read_text("utf-8"))
    assert kept["setting"] == result.setting and kept["question"] == result.question
    rows = [row for part in kept["parts"] for row in part["rows"]]
    assert [type(result.rows[0])(**row) for row in rows] == list(result.rows)
    assert kept["other parts"] == [] and kept["versions"]["torch"] and kept["machine"]["threads"]
    assert "NaN" not in (place / f"{name}.json").read_text("utf-8")
    assert (place / f"{name}.md").read_text("utf-8") == str(result)
    picture = (place / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and 5_000 < len(picture) < 200_000


@pytest.mark.parametrize("name", NAMES)
def test_page_needs_nothing_beside_itself(found, name):
    text = found[name].page_path.read_text("utf-8")
    page = Structure(text)
    anchors = {a["href"] for a in page.all("a")}
    assert anchors == {f"#{section}" for section in page.sections}
    assert len(page.all("h1")) == 1 and page.all("html") == [{"lang": "en"}]
    names = [values["id"] for _, values in page.elements if "id" in values]
    assert len(names) == len(set(names))
    assert not re.search(r"""https?:|["'(]//|@import|\bfetch\(|XMLHttpRequest""", text)
    for _, values in page.elements:
        for key in ("src", "href", "xlink:href"):
            assert key not in values or values[key].startswith(("data:", "#"))
    plots = page.all("svg")
    assert len(plots) == len(found[name].charts)
    for plot in plots:
        assert plot["role"] == "img" and len(plot["aria-label"]) > 20
    assert "prefers-color-scheme: dark" in text and {
        "name": "color-scheme",
        "content": "light dark",
    } in page.all("meta")
    # Colours are the style sheet's: neither the stand-ins nor those of the picture.
    drawn = text[text.index("<main>") :]
    assert "var(--series-1)" in drawn and not re.search(r"#0[1-4]00?0[0-9a-f]|#0072b2", drawn)
    for sentence in found[name].findings:
        assert sentence in page.sections["found"]
    assert found[name].question in text and "[finetune.cam]" in page.sections["setting"]
    for key, value in found[name].setting.items():
        assert key in page.sections["setting"] and value in page.sections["setting"]
    assert len(page.tables[0]) == len(found[name].rows) + 1


def test_studies_share_their_images(found, folder):
    assert len(list((folder / found["cam"].network / "banks").iterdir())) == 2


def killed_after(parts: int, kind, patch):
    """Let the parts of a kind of study stop after so many."""
    whole = kind.parts
    done = []

    def counted(self, bench):
        for part in whole(self, bench):

            def make(part=part):
                if len(done) == parts:
                    raise KeyboardInterrupt
                done.append(part.key)
                return part.make()

            yield part._replace(make=make)

    patch.setattr(kind, "parts", counted)
    return done


def test_a_killed_study_goes_on(found, tmp_path, monkeypatch):
    expected = found["noise"].rows
    with monkeypatch.context() as patch:
        killed_after(5, noise.Noise, patch)
        with pytest.raises(KeyboardInterrupt):
            small("noise", output=tmp_path)
    (file,) = tmp_path.glob("*/noise.json")
    assert len(json.loads(file.read_text("utf-8"))["parts"]) == 5
    assert not file.with_suffix(".html").exists()
    with monkeypatch.context() as patch:
        done = killed_after(100, noise.Noise, patch)
        assert small("noise", output=tmp_path).rows == expected
        assert len(done) == len(expected) - 5
        done.clear()
        assert small("noise", output=tmp_path).rows == expected and done == []


def test_what_was_found_before_stays_for_those_who_ask_again(tmp_path, monkeypatch):
    both = small("spectra", output=tmp_path)
    other = small("spectra", output=tmp_path, options={"cutoffs": [3.0], "images": 4}, seeds=[1])
    assert [row.cutoff for row in other.rows] == [None, None, 3.0, 4.0]
    kept = json.loads(next(tmp_path.glob("*/spectra.json")).read_text("utf-8"))
    assert (len(kept["parts"]), len(kept["other parts"])) == (2, 3)
    done = killed_after(100, spectra.Spectra, monkeypatch)
    assert small("spectra", output=tmp_path).rows == both.rows and done == []


@pytest.mark.parametrize("change", ["bits", "weights", "data", "recipe"])
def test_what_a_result_depends_on_is_not_taken_for_another(tmp_path, monkeypatch, change):
    given = {"output": tmp_path, "options": {"images": 4, "cutoffs": [2.0]}, "seeds": [0]}
    small("spectra", **given)
    if change == "weights":
        # Other images as well: a folder holds those of one network.
        given["overrides"] = {**TINY_OVERRIDES, "synthesis.images": 6}
        monkeypatch.setattr("tests.studies.small.tiny_teacher", lambda: tiny_teacher(1))
    elif change == "data":
        given["data"] = real(12)
    elif change == "bits":
        given["bits"] = "w3a3"
    else:
        given["overrides"] = {**TINY_OVERRIDES, "filter.cutoff": 2.5}
    done = killed_after(100, spectra.Spectra, monkeypatch)
    small("spectra", **given)
    assert len(done) == 2


def test_more_of_a_kind_leaves_what_is_there(found, tmp_path, monkeypatch):
    few = {**OPTIONS["noise"], "kinds": ["white"], "cutoffs": [2.0]}
    small("noise", output=tmp_path, options=few, seeds=[0])
    done = killed_after(100, noise.Noise, monkeypatch)
    rows = small("noise", output=tmp_path, seeds=[0]).rows
    assert [row for row in found["noise"].rows if row.seed == 0] == list(rows)
    # Without a filter the clean images and white noise were there.
    assert len(rows) == 6 and len(done) == 4
    small("noise", output=tmp_path, options={**OPTIONS["noise"], "steps": 3}, seeds=[0])
    assert len(done) == 4 + 6


def test_without_output_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = small("spectra")
    assert result.rows and result.page_path is None and list(tmp_path.iterdir()) == []


def test_damaged_results_say_what_to_do(tmp_path):
    small("spectra", output=tmp_path)
    (file,) = tmp_path.glob("*/spectra.json")
    file.write_text(file.read_text("utf-8")[:-60])
    with pytest.raises(DataError, match=r"spectra\.json is damaged.*delete it"):
        small("spectra", output=tmp_path)


# Errors


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("noize", {}, ArgumentError, r"no study 'noize'; did you mean noise\? .*spectra"),
        ("everything", {}, ArgumentError, r"no study 'everything' \(there are overhead, noise"),
        ("noise", {"data": None}, DataError, "needs labelled images.*data or --data"),
        ("spectra", {"data": None}, DataError, "needs real images.*folder.*data or --data"),
        ("labels", {"bits": "auto:4.0"}, ArgumentError, "fixed widths"),
        ("labels", {"seeds": []}, ArgumentError, "seeds must be a list"),
        ("labels", {"seeds": 3}, ArgumentError, "seeds must be a list"),
        ("noise", {"options": {"step": 3}}, RecipeError, r'"noise\.step".*mean "noise\.steps"'),
        ("noise", {"options": {"kinds": ["pink"]}}, RecipeError, "kinds must be one of white"),
        ("noise", {"options": {"steps": 0}}, RecipeError, "steps must be 1 to"),
        ("labels", {"recipe": "gdfq-digits"}, RecipeError, "has no bank of images"),
    ],
)
def test_what_cannot_be_asked(name, options, error, message):
    with pytest.raises(error, match=message):
        small(name, **options)


def test_a_network_without_a_recipe_of_its_own_asks_for_one():
    with pytest.raises(ArgumentError, match="name one with recipe or --recipe"):
        synq_fast.study("labels", tiny_vit(), progress=False)


def test_the_recipe_is_synqs():
    result = synq_fast.study(
        "labels",
        tiny_net(),
        seeds=[0],
        options={"samples": 8},
        overrides=TINY_OVERRIDES,
        input_shape=SHAPE,
        progress=False,
    )
    assert result.setting["recipe"] == "synq-digits"
    # Without labelled images the synthetic ones are looked at alone.
    assert {row.images for row in result.rows} == {"synthetic", "training batches"}
    assert "labelled images" not in result.setting


def test_missing_library_is_said_before_the_work(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*synq-fast\[report\]"):
        small("spectra", output=tmp_path)
    assert list(tmp_path.iterdir()) == []


# The command


TINY = [part for key, value in TINY_OVERRIDES.items() for part in ("--set", f"{key}={value}")]
NETWORK = ["--model", "tests.tiny:tiny_net", "--input-shape", "2,8,8", "--quiet"]


def test_command(tmp_path, capsys, real_file):
    arguments = ["study", "spectra", *NETWORK, *TINY, "--recipe", "synq-digits"]
    arguments += ["--data", str(real_file), "--seeds", "0", "--option", "cutoffs=[2.0]"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([*arguments, "--output", str(tmp_path)]) == 0
        printed = capsys.readouterr()
        assert main(arguments) == 0
    (page,) = tmp_path.glob("*/spectra.html")
    assert printed.err == "" and printed.out.splitlines()[-1] == str(page)
    assert printed.out.startswith("- Synthetic images, as synthesized: ")
    alone = capsys.readouterr().out
    assert alone == page.with_suffix(".md").read_text("utf-8")


@pytest.fixture
def real_file(tmp_path_factory):
    """Labelled images in a file."""
    import numpy as np

    path = tmp_path_factory.mktemp("real") / "photographs.npz"
    images, labels = labelled()[0]
    pixels = images.sigmoid().numpy()
    np.savez(path, images=pixels, labels=labels.numpy())
    return path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "there are overhead, noise, cam, labels, spectra"),
        (["noise"], "the study noise needs labelled images"),
        (["noise", "--data", "digits", "--option", "steps"], "--option takes KEY=VALUE"),
    ],
)
def test_command_says_what_to_mend(capsys, arguments, said):
    assert main(["study", *arguments, *NETWORK]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and printed.out == ""


# Charts


def test_a_name_has_one_colour_in_all_charts():
    def chart(*names):
        series = [Series(name, [0, 1], [1, 2], [0.5, 1], [2, 3]) for name in names]
        return Chart("t", "a chart of names", "x", "y", series)

    charts = [chart("a", "b"), chart("b", "c")]
    assert legend(charts) == [("a", 1), ("b", 2), ("c", 3)]
    first, second = (panel.svg for panel in panels(charts, Figures()))
    assert "var(--series-1)" in first and "var(--series-1)" not in second
    assert "var(--series-3)" in second and "var(--series-3)" not in first
    many = [chart(*map(str, range(8)))]
    assert [number for _, number in legend(many)] == [1, 2, 3, 4, 5, 6, 1, 2]


def test_rows_have_their_names_and_the_mark_its_text():
    series = [Series("", [3.0, -1.0], [0, 1], [2.0, -2.0], [4.0, 0.0])]
    chart = Chart("t", "a chart of rows", "%", "", series, ["first <row>", "second"], (0.0, "base"))
    text = panels([chart], Figures())[0].svg
    assert ">base<" in text and ">second<" in text and "first &lt;row&gt;" in text


def test_options_that_the_tests_use_are_those_of_the_studies():
    assert set(OPTIONS) == set(STUDIES)
