"""Writing a quantized model for other runtimes, and proving that the file computes the same."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from synq_fast.data import EvaluationSet, load_dataset
from synq_fast.deployment.agreement import agreement
from synq_fast.deployment.card import model_card
from synq_fast.deployment.float_form import float_form
from synq_fast.deployment.freezing import freeze
from synq_fast.deployment.latency import Latency, latency
from synq_fast.deployment.layers import layer_rows
from synq_fast.deployment.onnx_file import onnx_bytes
from synq_fast.deployment.report import Accuracy, ExportReport, LayerRow
from synq_fast.deployment.runtimes import OnnxRuntime, OpenVino, Runtime
from synq_fast.deployment.targets import Target, target_of
from synq_fast.deployment.verification import (
    Check,
    check_graph,
    check_runtime,
)
from synq_fast.engine.evaluation import evaluate
from synq_fast.engine.export_source import ExportSource, export_source
from synq_fast.engine.result import QuantizationResult
from synq_fast.engine.saved_model import save_frozen
from synq_fast.errors import ExportError, RecipeError
from synq_fast.models import Teacher
from synq_fast.quant import held_weights
from synq_fast.quant.widths import widths_of
from synq_fast.runtime.out_of_memory import MORE_MEMORY, memory_errors
from synq_fast.runtime.progress import Reporter
from synq_fast.runtime.seeding import generator_for, normal_images
from synq_fast.runtime.threads import usable_cores
from synq_fast.storage.files import read_tensors, write_bytes, write_text
from synq_fast.storage.paths import user_path
from synq_fast.version import __version__

FORMATS = {"onnx": ".onnx", "packed": ".safetensors"}
_IMAGES = 256
_MANY_PIXELS = 64 * 64
_FEW = 32
"""Images that are compared where they are large."""
_ERRORS = 2.0
"""Standard errors of a fall in accuracy that is no chance."""


@memory_errors("export", MORE_MEMORY)
def export(
    model: QuantizationResult | str | Path,
    path: str | Path,
    format: str = "onnx",
    *,
    target: str = "ort",
    verify: bool = True,
    evaluation: str | Path | EvaluationSet | None = None,
    architecture: nn.Module | None = None,
    batch: int | None = None,
    normalize: bool = False,
    reduce_range: bool = False,
    compare: bool = False,
    threads: int | None = None,
    progress: bool = False,
) -> ExportReport:
    """Write a quantized model as a file that runs in integers, and check it before it is there.

    Beside the file, ``path`` with the suffix ``.md`` gets a model card, and with ``.json`` the
    report.

    Args:
        model: what ``quantize`` returned, or the path of a saved model or run folder.
        path: the file to write; one that is there is replaced.
        format: ``onnx`` (opset 21), or ``packed``: the frozen network as safetensors, its weights
            at their own widths, which ``load`` takes. Of what follows it takes ``evaluation`` and
            ``architecture`` alone.
        target: the runtime that it is for: ``ort`` (ONNX Runtime; others read it too),
            ``openvino``, ``tensorrt`` or ``xnnpack``.
        verify: run the file beside the frozen network: as it stands, and as its runtime runs it.
        evaluation: labelled images, on which accuracy is counted too.
        architecture: the float architecture, where ``load`` of the path needs it.
        batch: number of images that the file takes at a time; None: any.
        normalize: make mean and deviation part of the file, which then takes images of 0..1.
        reduce_range: as ``freeze`` takes it, for processors without VNNI.
        compare: fill the report's table of layers: beside the float network where its weights are
            found, else beside the quantized one's own without quantizers.
        threads: of the runtimes; by default one for each core.
        progress: say on standard error what is being done.

    Raises:
        ExportError: the file does not compute what the frozen network does; nothing is written.
        ModelError: the model has no form that the target takes.
        MissingExtraError: the ``export`` extra is not installed.
        CheckpointError: the path holds no quantized model.
        StorageError: the file cannot be written.
    """
    if format not in FORMATS:
        raise RecipeError(f"no export format {format!r}; there are {', '.join(FORMATS)}")
    path, wanted = user_path(path), target_of(target)
    if path.suffix != FORMATS[format]:
        raise RecipeError(f"a file of format {format} is called NAME{FORMATS[format]}, got {path}")
    if batch is not None and batch < 1:
        raise RecipeError(f"batch must be a positive number of images, got {batch}")
    say = Reporter(progress).line
    source = export_source(model, architecture)
    if format == "packed":
        return _packed(source, path, evaluation, say)
    student, teacher = source.network.cpu(), source.model
    threads = threads or usable_cores()
    with torch.no_grad(), held_weights(student):
        frozen = freeze(
            student, reduce_range=reduce_range, layer_inputs_only=wanted.layer_inputs_only
        )
        say("frozen; writing the graph")
        plain = float_form(student)

        def written(network: fx.GraphModule, fixed: int | None = batch) -> bytes:
            return onnx_bytes(
                network,
                teacher.input_shape,
                wanted,
                batch=fixed,
                normalization=(teacher.mean, teacher.std) if normalize else None,
                metadata=_metadata(source, student, normalize) if network is frozen else None,
            )

        content, float_content = written(frozen), written(plain)
        images = _images(source, evaluation)
        given = _raw(teacher, images) if normalize else images
        checks: tuple[Check, ...] = ()
        rows: tuple[LayerRow, ...] = ()
        if verify:
            say(f"comparing logits of {len(images)} images")
            expected = _logits(frozen, images)
            roundings = agreement(expected, _logits(student, images)).median
            checks = _checks(
                frozen, content, wanted, (expected, roundings), (images, given), batch, threads
            )
            _refuse(checks)
        if compare:
            codes = checks[0].codes if checks else {}
            before = source.float_network()
            rows = layer_rows(before or plain, frozen, codes, images[:_FEW])
        accuracy = None
        if evaluation is not None:
            say("counting accuracy")
            runtime = _runtime(wanted, content, threads, batch) if verify else None
            accuracy = _accuracy(source, frozen, evaluation, runtime, normalize)
            _refuse_loss(accuracy)
        timed = None
        if verify and wanted.runs_here:
            say("timing")
            timed = _latency(written(frozen, 1), written(plain, 1), wanted, given[:1], threads)
    report = ExportReport(
        path,
        wanted.name,
        _widths(student),
        str(student.meta["placement"]),
        len(content),
        len(float_content),
        checks,
        accuracy,
        timed,
        rows,
    )
    write_bytes(path, content)
    _write_beside(report, source, normalize)
    return report


def _packed(
    source: ExportSource,
    path: Path,
    evaluation: str | Path | EvaluationSet | None,
    say: Callable[[str], object],
) -> ExportReport:
    """The frozen network in a file of its own."""
    student = source.network.cpu()
    with torch.no_grad(), held_weights(student):
        say("frozen; packing")
        frozen = freeze(student)
        accuracy = None
        if evaluation is not None:
            accuracy = _accuracy(source, frozen, evaluation, None, False)
            _refuse_loss(accuracy)
    save_frozen(path, frozen, source.description)
    float_bytes = sum(4 * p.numel() for p in float_form(student).state_dict().values())
    report = ExportReport(
        path,
        "synq_fast.load",
        _widths(student),
        str(student.meta["placement"]),
        path.stat().st_size,
        float_bytes,
        accuracy=accuracy,
    )
    _write_beside(report, source, normalize=False)
    return report


def _write_beside(report: ExportReport, source: ExportSource, normalize: bool) -> None:
    """The report and the model card."""
    teacher, path = source.model, report.path
    write_text(path.with_suffix(".json"), json.dumps(report.as_dict(), indent=2) + "\n")
    card = model_card(
        report,
        name=teacher.name,
        version=__version__,
        recipe=source.recipe_name or "not recorded",
        input_shape=teacher.input_shape,
        mean=teacher.mean,
        std=teacher.std,
        classes=teacher.num_classes,
        normalized=normalize,
    )
    write_text(path.with_suffix(".md"), card)


def _metadata(source: ExportSource, student: fx.GraphModule, normalized: bool) -> dict[str, str]:
    teacher = source.model
    described = {
        "version": __version__,
        "model": teacher.name,
        "recipe": hashlib.sha256(source.recipe.encode()).hexdigest()[:16] if source.recipe else "",
        "bits": _widths(student),
        "placement": str(student.meta["placement"]),
        "classes": str(teacher.num_classes),
        "mean": json.dumps(teacher.mean),
        "std": json.dumps(teacher.std),
        "input": "0..1" if normalized else "normalized",
    }
    return {f"synq_fast.{key}": value for key, value in described.items() if value}


def _widths(student: fx.GraphModule) -> str:
    """Widths as a person says them: of the weights, and of what layers read."""
    widths = widths_of(student)
    weights, activations = {*widths.weights.values()}, {*widths.activations.values()}
    if student.meta["placement"] == "integer" and len(activations) > 1:
        activations -= {8}  # sums and what feeds them
    parts = ("-".join(map(str, sorted({min(v), max(v)}))) for v in (weights, activations) if v)
    return "".join(letter + part for letter, part in zip("wa", parts, strict=False))


def _images(source: ExportSource, evaluation: str | Path | EvaluationSet | None) -> Tensor:
    """Normalised images to compare on: synthetic ones, those of the evaluation set, or noise."""
    teacher = source.model
    count = _IMAGES if math.prod(teacher.input_shape[1:]) <= _MANY_PIXELS else _FEW
    shards = sorted(source.bank.glob("shard-*.safetensors")) if source.bank else []
    if shards:
        return read_tensors(shards[0])[0]["images"][:count].clone()
    if evaluation is not None:
        images, _ = next(iter(_set(evaluation, teacher).batches(count)))
        return images
    return normal_images(count, teacher.input_shape, generator_for(0, "export"))


def _set(evaluation: str | Path | EvaluationSet, teacher: Teacher) -> EvaluationSet:
    return (
        evaluation if isinstance(evaluation, EvaluationSet) else load_dataset(evaluation, teacher)
    )


def _raw(teacher: Teacher, images: Tensor) -> Tensor:
    return teacher.denormalize(images)


def _logits(network: fx.GraphModule, images: Tensor) -> Tensor:
    return torch.cat([network(part) for part in images.split(_FEW)])


def _checks(
    frozen: fx.GraphModule,
    content: bytes,
    target: Target,
    expected: tuple[Tensor, float],
    images: tuple[Tensor, Tensor],
    batch: int | None,
    threads: int,
) -> tuple[Check, ...]:
    (logits, roundings), given = expected, images[1]
    exact = check_graph(frozen, content, *images, batch)
    if not exact.passed or not target.runs_here:
        return (exact,)
    runtime = _runtime(target, content, threads, batch)
    return exact, check_runtime(frozen, runtime, logits, given, roundings)


def _runtime(
    target: Target, content: bytes, threads: int, batch: int | None
) -> OnnxRuntime | OpenVino:
    """What a file is tried in: its own runtime; where that is not here, its graph as it stands."""
    if target.name == "openvino":
        return OpenVino(content, threads=threads, batch=batch)
    return OnnxRuntime(content, optimized=target.runs_here, threads=threads, batch=batch)


def _refuse(checks: tuple[Check, ...]) -> None:
    for check in checks:
        if not check.passed:
            raise ExportError(
                f"the file does not compute what the frozen network does, and was not written. "
                f"{check.runtime}: {check.agreement}; {checks[0].first_difference()}"
            )


def _refuse_loss(accuracy: Accuracy) -> None:
    values = [v for v in (accuracy.frozen, accuracy.exported) if v is not None]
    lost = accuracy.fake_quantized - min(values)
    # Of few images that turned, the number itself has an error of its root.
    turned = 100 * math.sqrt(max(lost, 0) / 100 * accuracy.images) / accuracy.images
    if lost > _ERRORS * max(accuracy.standard_error, turned):
        raise ExportError(
            f"the integer model is worse than the fake-quantized one by more than chance, and was "
            f"not written: {accuracy}"
        )


class _InRuntime(nn.Module):
    def __init__(self, runtime: Runtime, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.runtime, self.prepare = runtime, prepare

    def forward(self, images: Tensor) -> Tensor:
        return self.runtime(self.prepare(images))


def _accuracy(
    source: ExportSource,
    frozen: fx.GraphModule,
    evaluation: str | Path | EvaluationSet,
    runtime: Runtime | None,
    normalized: bool,
) -> Accuracy:
    labelled = _set(evaluation, source.model)
    before = evaluate(source.network, labelled)
    exported = None
    if runtime is not None:

        def prepare(images: Tensor) -> Tensor:
            return _raw(source.model, images) if normalized else images

        exported = evaluate(_InRuntime(runtime, prepare), labelled, device="cpu").top1
    # With one success and one failure more, so that 100 % is not free of error.
    share = (before.top1 / 100 * before.count + 1) / (before.count + 2)
    error = 100 * math.sqrt(share * (1 - share) / before.count)
    return Accuracy(before.top1, evaluate(frozen, labelled).top1, exported, before.count, error)


def _latency(content: bytes, plain: bytes, target: Target, image: Tensor, threads: int) -> Latency:
    def loaded(file: bytes) -> Callable[[], object]:
        runtime = _runtime(target, file, threads, 1)
        return lambda: runtime(image)

    return latency(loaded(content), loaded(plain), threads)
