"""Exports as users call them; what is in the files is tested in tests/deployment."""

import json
import sys
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save_file

import synq_fast
from synq_fast.engine import exporting
from synq_fast.errors import CheckpointError, ExportError, MissingExtraError, RecipeError
from tests.tiny import TINY_OVERRIDES, tiny_net

INTEGER = {
    **TINY_OVERRIDES,
    "stages": ["synthesis", "calibration"],
    "quantization.placement": "integer",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run for an integer runtime, and its folder."""
    pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    pytest.importorskip("onnxscript", reason="the export extra is not installed")
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    result = synq_fast.quantize(
        tiny_net(), "synq", "w4a4", (2, 8, 8), output=folder, overrides=INTEGER, progress=False
    )
    return result, folder


@pytest.fixture
def quick(monkeypatch):
    """Times nothing: no test looks at a time."""
    from synq_fast.deployment import latency

    monkeypatch.setattr(latency, "_ROUNDS", 1)
    monkeypatch.setattr(latency, "_SECONDS", 0.0)


def test_a_run_is_exported_with_its_card(finished, tmp_path, quick):
    _, folder = finished
    report = synq_fast.export(folder, tmp_path / "net.onnx", architecture=tiny_net(), compare=True)
    assert [check.passed for check in report.checks] == [True, True]
    assert report.checks[1].integer_layers == 3 and not report.checks[1].float_layers
    assert (report.bits, report.placement, report.target) == ("w4a4", "integer", "ort")
    assert [row.name for row in report.layers] == ["conv1", "conv2", "fc"]
    assert report.latency.threads >= 1
    written = json.loads((tmp_path / "net.json").read_text())
    assert written["bytes"] == report.bytes == (tmp_path / "net.onnx").stat().st_size
    card = (tmp_path / "net.md").read_text()
    assert "TinyNet, w4a4" in card and "| recipe | synq |" in card
    assert "layers in integers: 3 of 3" in card
    shown = str(report)
    for part in ("% of float32's", "x as fast as float32", "signal to noise", "same codes"):
        assert part in shown


def test_a_result_is_exported_and_takes_pixels(finished, tmp_path):
    result, _ = finished
    path = tmp_path / "net.onnx"
    report = synq_fast.export(result, path, normalize=True, verify=False, batch=2)
    assert report.checks == () and report.latency is None
    import onnx

    model = onnx.load(path)
    told = {p.key: p.value for p in model.metadata_props}
    assert told["synq_fast.input"] == "0..1" and told["synq_fast.bits"] == "w4a4"
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert "the file normalises them itself" in path.with_suffix(".md").read_text()


@pytest.mark.parametrize("target", ["ort", "xnnpack"])
def test_accuracy_is_that_of_the_files_own_runtime(tmp_path, target, finished, monkeypatch, quick):
    result, _ = finished
    used, made = [], exporting.OnnxRuntime

    def noted(*args, **options):
        used.append(options["optimized"])
        return made(*args, **options)

    monkeypatch.setattr(exporting, "OnnxRuntime", noted)
    labelled = [(torch.zeros(4, 2, 8, 8), torch.zeros(4, dtype=torch.int64))]
    monkeypatch.setattr(exporting, "_set", lambda evaluation, teacher: labelled)
    monkeypatch.setattr(exporting, "_images", lambda source, evaluation: torch.randn(8, 2, 8, 8))
    report = synq_fast.export(result, tmp_path / "n.onnx", target=target, evaluation="mine")
    assert report.accuracy.images == 4 and report.accuracy.exported is not None
    # XNNPACK is not here: its graph runs as it stands, which ONNX Runtime would rewrite wrongly.
    assert set(used) == {target == "ort"}


def test_a_wrong_file_is_not_written(finished, tmp_path, monkeypatch):
    result, _ = finished
    path = tmp_path / "net.onnx"
    right = exporting.onnx_bytes

    def wrong(network, *args, **options):
        for name, buffer in network.named_buffers():
            if name == "conv2.scale":
                buffer.mul_(1.1)
        content = right(network, *args, **options)
        for name, buffer in network.named_buffers():
            if name == "conv2.scale":
                buffer.div_(1.1)
        return content

    monkeypatch.setattr(exporting, "onnx_bytes", wrong)
    with pytest.raises(ExportError, match=r'was not written.*first at "quantize_bn2"'):
        synq_fast.export(result, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"path": "net.txt"}, r"a file of format onnx is called NAME\.onnx, got"),
        ({"format": "tflite"}, "no export format 'tflite'; there are onnx"),
        ({"target": "coreml"}, "no export target 'coreml'"),
        ({"batch": 0}, "batch must be a positive number of images"),
    ],
)
def test_mistakes(finished, tmp_path, options, part):
    options = {"path": tmp_path / "net.onnx", **options}
    with pytest.raises(RecipeError, match=part):
        synq_fast.export(finished[0], **options)


def test_what_is_no_quantized_model(finished, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not a model that synq-fast saved"):
        synq_fast.export(tmp_path / "x.safetensors", tmp_path / "x.onnx")


def test_a_missing_extra_is_named(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"needs onnxscript.*synq-fast\[export\]"):
        synq_fast.export(finished[0], tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("before", "after", "count", "refused"),
    [
        (100.0, 100 * 358 / 360, 360, False),  # two of 360 images turned
        (100.0, 100 * 354 / 360, 360, True),
        (60.0, 61.0, 360, False),
        (60.0, 59.7, 50_000, False),
        (60.0, 59.0, 50_000, True),
        (10.0, 0.0, 10, False),
        (90.0, 40.0, 10, True),
    ],
)
def test_a_loss_beyond_chance_is_refused(before, after, count, refused):
    share = (before / 100 * count + 1) / (count + 2)
    error = 100 * (share * (1 - share) / count) ** 0.5
    accuracy = exporting.Accuracy(before, after, None, count, error)
    message = "worse than the fake-quantized one by more than chance"
    with pytest.raises(ExportError, match=message) if refused else nullcontext():
        exporting._refuse_loss(accuracy)
