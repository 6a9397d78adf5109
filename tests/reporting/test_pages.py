"""What is on the page of each kind of run."""

import importlib.metadata
import json
import math
import re
import shutil

import pytest
import torch
from torch import nn

import synq_fast
from synq_fast.cli import main
from synq_fast.errors import DataError, MissingExtraError, RunFolderError
from synq_fast.models import load_teacher
from synq_fast.reporting.accuracy import standard_error
from synq_fast.reporting.figures import charts
from tests.reporting.html import Structure
from tests.reporting.runs import interrupted, page_of, small
from tests.tiny import SHAPE, TinyNet, labelled, tiny_net

SECTIONS = [
    *("accuracy", "images", "training", "maps", "layers"),
    *("float", "time", "recipe", "machine", "missing"),
]
STAGES = ["float", "calibrated", "after blocks", "last step"]


def checked(text: str) -> Structure:
    """The structure of a page, which needs nothing beside itself and names every picture."""
    page = Structure(text)
    assert list(page.sections) == SECTIONS
    anchors = {a["href"] for a in page.all("a")}
    assert anchors == {f"#{name}" for name in SECTIONS}
    assert len(page.all("h1")) == 1 and page.all("html") == [{"lang": "en"}]
    names = [values["id"] for _, values in page.elements if "id" in values]
    assert len(names) == len(set(names))
    assert not re.search(r"""https?:|["'(]//|@import|\bfetch\(|XMLHttpRequest""", text)
    for _, values in page.elements:
        for key in ("src", "href", "xlink:href"):
            assert key not in values or values[key].startswith(("data:", "#"))
    for image in page.all("img"):
        assert image["src"].startswith("data:image/") and len(image["alt"]) > 5
    for plot in page.all("svg"):
        assert plot["role"] == "img" and len(plot["aria-label"]) > 5
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#(p\d[^"]*)"', text))
    assert used <= set(names)
    assert len(text) < 8e6
    return page


def test_finished_run(finished, finished_page):
    _, result = finished
    page = checked(finished_page.read_text("utf-8"))
    assert "is not finished" not in finished_page.read_text("utf-8")
    rows = page.table("bits")
    assert [row["network"] for row in rows[:4]] == STAGES
    assert rows[-1]["network"].startswith("best seen (step ")
    assert rows[-1]["network"].endswith("not the result)")
    names = ["float32", "post-training", "reconstructed", "quantized"]
    for row, name in zip(rows[:4], names, strict=True):
        top1 = result.metrics[name]["top1"]
        assert row["top-1, %"] == f"{top1:.2f}" and row["images"] == "16"
        assert row["± points"] == f"{standard_error(top1, 16):.2f}"
    assert "12 images are kept" in page.sections["images"]
    assert "real: photographs.npz" in page.sections["images"]
    assert "threshold" in page.sections["images"]
    for term in ("kl", "ce", "cam", "features"):
        assert term in page.sections["training"].split()
    for block in {r["block"] for r in result.history if r["stage"] == "blocks"}:
        assert block in page.sections["training"].split()
    weights = page.table("layer")
    assert [row["layer"] for row in weights] == ["conv1", "conv2", "fc"]
    assert [row["bits"] for row in weights] == ["4"] * 3
    assert weights[0]["input bits"] == "float"
    assert "median cosine similarity" in page.sections["maps"].lower()
    assert "the image" in page.sections["float"]
    assert "fine-tuning" in page.sections["time"]
    assert "[finetune.cam]" in page.sections["recipe"]
    assert importlib.metadata.version("torch") in page.sections["machine"]
    assert "Nothing." in page.sections["missing"]


def test_a_page_is_the_same_again(finished, finished_page, real_images):
    assert page_of(finished[0], images=real_images) == finished_page.read_text("utf-8")


def test_the_run_is_as_it_was(finished, finished_page):
    folder, result = finished
    assert not (folder / "report.html").exists()
    loaded = synq_fast.load(folder).state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in result.model.state_dict().items())


def test_several_widths(widths):
    page = checked(page_of(widths))
    assert [row["bits"] for row in page.table("bits")] == ["w8a4"] * 3 + ["w2a2"] * 3
    assert list(page.table("phase")[0]) == ["phase", "w8a4", "w2a2"]
    # One bank, shown once.
    assert page.sections["images"].count("images are kept") == 1
    sizes = {row["bits"] for table in page.tables for row in as_rows(table) if "bytes" in row}
    assert sizes == {"8", "2"}


def test_runs_of_one_width_are_told_apart_by_their_seeds(tmp_path):
    for seed in (0, 1):
        small(tmp_path / "x" / f"seed-{seed}", seed=seed, recipe="calibrate-digits")
    (tmp_path / "x" / "sensitivity").mkdir()
    (tmp_path / "x" / "sensitivity" / "run.json").write_text('{"bits": "sensitivity"}')
    (tmp_path / "x" / "sensitivity" / "sensitivity.json").write_text("{}")
    page = checked(page_of(tmp_path / "x"))
    assert list(page.table("phase")[0]) == ["phase", "w4a4, seed 0", "w4a4, seed 1"]
    # Images of other seeds are others.
    assert page.sections["images"].count("images are kept") == 2


def as_rows(table):
    return [dict(zip(table[0], row, strict=True)) for row in table[1:]]


def test_transformer(transformer):
    folder, teacher = transformer
    page = checked(page_of(folder, teacher=teacher))
    quantizers = {row["quantizer"]: row for row in as_rows(page.tables[2])}
    # Queries, keys, probabilities and values are read by products and not by layers.
    assert any("matmul" in row["read by"] for row in quantizers.values())
    assert "layers_1_norm1" in page.sections["maps"]
    assert "placement vit" in page.sections["float"]


def test_network_that_is_not_found_is_named(transformer):
    page = checked(page_of(transformer[0]))
    missing = page.sections["missing"]
    assert "the float network" in missing and "teacher=" in missing
    assert "There are no maps" in page.sections["maps"]


def test_network_with_other_weights_is_refused(finished):
    page = checked(page_of(finished[0], teacher=tiny_net(seed=3)))
    assert "does not have the weights of this run" in page.sections["missing"]
    assert "weight SNR, dB" in page.sections["layers"]  # the quantized network needs no float one


def test_checkpoint_that_moved(tmp_path):
    path, moved = tmp_path / "weights.pt", tmp_path / "moved.pt"
    torch.save(tiny_net(seed=5).state_dict(), path)
    teacher = load_teacher("tests.tiny:tiny_net", weights=path, input_shape=SHAPE)
    small(tmp_path / "run", teacher=teacher, recipe="calibrate-digits")
    assert "float network" not in Structure(page_of(tmp_path / "run")).sections["missing"]
    path.rename(moved)
    missing = Structure(page_of(tmp_path / "run")).sections["missing"]
    assert "the float network" in missing and str(path) in missing and "--weights" in missing
    assert "float" not in Structure(page_of(tmp_path / "run", weights=moved)).sections["missing"]


def test_generator(generated):
    folder, _ = generated
    page = checked(page_of(folder))
    assert "the generator draws at its end" in page.sections["images"]
    assert "the recipe has no low-pass filter" in page.sections["images"]
    # Losses of the generator alone, then beside those of training.
    assert "statistics" in page.sections["images"].split()
    assert "generator_classes" in page.sections["training"].split()


def test_calibration_alone(tmp_path):
    small(tmp_path / "run", recipe="calibrate-digits")
    page = checked(page_of(tmp_path / "run"))
    assert "No records" in page.sections["training"]
    assert "no labelled images were given" in page.sections["missing"]
    assert "The recipe uses no threshold" in page.sections["images"]
    assert [row["output SNR, dB"] > "0" for row in page.table("layer")] == [True] * 3


def test_network_without_maps_at_widths_that_were_found(tmp_path):
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(math.prod(SHAPE), 8), nn.ReLU(), nn.Linear(8, 3)]
    network = nn.Sequential(*layers).eval()
    off = {"finetune.cam.weight": 0.0, "finetune.features.weight": 0.0}
    result = small(tmp_path / "run", teacher=network, bits="auto:4.0", overrides=off)
    page = checked(page_of(tmp_path / "run", teacher=network))
    assert "no convolution with more than one output pixel" in page.sections["missing"]
    widths = result.metrics["coverage"]["widths"]["weights"]
    assert {row["layer"]: int(row["bits"]) for row in page.table("layer")} == widths
    average = result.metrics["average bits"]["weights"]
    assert f"Average bits: weights {average:.3f}" in page.sections["layers"]


@pytest.mark.parametrize(
    ("steps", "images", "said"),
    [
        (0, "no synthetic images", "Finished so far: nothing"),
        (4, "6 images are kept", "the last record is step 3 of synthesis"),
        (10, "12 images are kept", "Finished so far: synthesis, calibration"),
    ],
)
def test_unfinished_run(tmp_path, steps, images, said):
    interrupted(tmp_path / "run", steps, evaluation=labelled())
    text = page_of(tmp_path / "run")
    page = checked(text)
    assert "w4a4 is not finished." in text and said in text
    assert images in page.sections["images"]
    assert "There is no quantized network yet" in page.sections["layers"]
    assert "the run is not finished" in page.sections["missing"]
    assert page.table("bits")[0]["network"] == "float"


def test_folder_without_what_newer_runs_write(finished, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(finished[0], folder)
    for name in ("about.json", "metrics.json", "bank/batch-00000.jsonl"):
        (folder / name).unlink()
    page = checked(page_of(folder))
    assert "about.json" in page.sections["missing"] and "metrics.json" in page.sections["missing"]
    assert [row["layer"] for row in page.table("layer")] == ["conv1", "conv2", "fc"]


@pytest.mark.parametrize("name", ["model.safetensors", "bank/shard-00000.safetensors"])
def test_damaged_files_are_named(finished, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    path = folder / name
    path.write_bytes(path.read_bytes()[:50])
    page = checked(page_of(folder))
    assert path.name in page.sections["missing"] or "shard" in page.sections["missing"]


EVIL = "<img src=x onerror=alert(1)>&\"'"


class Evil(TinyNet):
    pass


Evil.__name__ = EVIL


def test_names_are_escaped(tmp_path):
    folder = tmp_path / "a <b>&amp; folder"
    recipe = tmp_path / "<script>alert(2)<.toml"
    recipe.write_text(f"summary = {json.dumps(EVIL)}\n[finetune]\nsteps = 2\n")
    torch.manual_seed(0)
    small(folder, teacher=Evil().eval(), recipe=recipe)
    text = page_of(folder)
    page = checked(text)
    assert len(page.all("script")) == 1 and "onerror=" in text
    assert not any("onerror" in values or tag == "b" for tag, values in page.elements)
    assert "<script>alert(2)<" in page.sections["recipe"]
    assert EVIL in page.sections["recipe"].replace('\\"', '"')


def test_small_numbers_keep_their_digits():
    drawing = charts.curves([charts.Curve("loss", [1, 2, 3], [0.5, 0.02, 0.0004])])
    text = drawing.svg("a loss", 1)
    assert {">0.001<", ">0.01<", ">0.1<"} <= set(re.findall(r">[\d.]+<", text))
    assert not re.search(r"\.\d{3,}", re.sub(r">[^<]*<", "><", text))
    quoted = drawing.svg(EVIL, 2)
    assert "<img" not in quoted and Structure(quoted).all("svg")[0]["aria-label"] == EVIL


# Errors


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "damaged", "sensitivity"])
def test_folder_that_is_no_run(tmp_path, kind, capsys):
    folder = tmp_path / "x"
    if kind == "file":
        folder.write_text("mine")
    elif kind != "missing":
        folder.mkdir()
    if kind == "damaged":
        (folder / "run.json").write_text("{")
    if kind == "sensitivity":
        (folder / "run.json").write_text('{"bits": "sensitivity"}')
    with pytest.raises(RunFolderError) as caught:
        synq_fast.report(folder)
    message = str(caught.value)
    assert str(folder) in message
    if kind in ("damaged", "sensitivity"):
        assert {"damaged": "run.json", "sensitivity": "sensitivity.md"}[kind] in message
    else:
        assert "quantize" in message
    assert main(["report", str(folder)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html"))


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_missing_library_names_the_extra(finished, monkeypatch, library):
    import sys

    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf'{library}.*pip install "synq-fast\[report\]"'):
        synq_fast.report(finished[0])


def test_real_images_that_cannot_be_read(finished, tmp_path):
    with pytest.raises(DataError, match="neither a file nor a folder"):
        synq_fast.report(finished[0], images=tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        synq_fast.report(finished[0], images=tmp_path / "empty")


def test_command_writes_beside_the_run(widths, capsys):
    target = widths / "w2a2" / "report.html"
    assert main(["report", str(widths / "w2a2"), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{target} (") and captured.err == ""
    checked(target.read_text("utf-8"))
    target.unlink()


def test_command_takes_the_network_and_the_page(finished, tmp_path, capsys):
    page = tmp_path / "own" / "page.html"
    named = ["--model", "tests.tiny:tiny_net", "--output", str(page)]
    assert main(["report", str(finished[0]), *named]) == 0
    assert "w4a4: reading" in capsys.readouterr().err
    assert "Nothing." not in checked(page.read_text("utf-8")).sections["missing"]
