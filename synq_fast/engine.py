"""The engine: from a teacher and a recipe to a quantized model, phase by phase."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from synq_fast.allocator import keep_freed_memory
from synq_fast.data import EvaluationSet, load_dataset
from synq_fast.errors import ModelError, SynqFastError
from synq_fast.evaluation import EvaluationResult, evaluate
from synq_fast.finetune.batches import BatchSource
from synq_fast.finetune.step import SynqStep
from synq_fast.finetune.trainer import Record, Trainer
from synq_fast.models import Teacher, load_teacher
from synq_fast.progress import Phase, Reporter
from synq_fast.quant import BitWidths, find_tap_points, held_weights, observing, trace
from synq_fast.recipes import Recipe, dump_recipe, load_recipe
from synq_fast.run_folder import RunFolder
from synq_fast.saved_model import build_student, save_model
from synq_fast.synthesis.assembly import BankAssembly, streams
from synq_fast.synthesis.bank import Bank, BankFolder, ImageBank
from synq_fast.synthesis.losses import BatchNormTeacher
from synq_fast.synthesis.pixels import PixelSynthesizer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Metrics = dict[str, Any]


@dataclass
class QuantizationResult:
    """What ``quantize`` made."""

    model: nn.Module
    """Fake-quantized, in eval mode, on the device that it was made on."""
    history: list[Record]
    """One record per logged step: step, learning rate, mean of each loss term."""
    metrics: Metrics
    """Accuracies where an evaluation set was given, and seconds per phase."""
    teacher: Teacher = field(repr=False)
    bits: BitWidths
    recipe: Recipe = field(repr=False)

    def save(self, path: str | Path) -> None:
        """Write the model as safetensors; ``synq_fast.load`` gives identical outputs.

        Args:
            path: a ``.safetensors`` file, replaced if it is there.
        """
        save_model(Path(path), self.model, self.teacher, self.bits, self.recipe)


# Both train, also where the caller has switched gradients off.
@torch.inference_mode(False)
def quantize(
    teacher: str | nn.Module | Teacher,
    recipe: str | Path | Recipe = "synq-digits",
    bits: str | BitWidths = "w4a4",
    input_shape: tuple[int, int, int] | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    *,
    resume: bool = False,
    bank: str | Path | None = None,
    evaluation: str | Path | EvaluationSet | None = None,
    evaluate_every: int = 0,
) -> QuantizationResult:
    """Quantize a pre-trained image classifier without data.

    Args:
        teacher: a module, a ``Teacher``, or a name that ``load_teacher`` knows.
        recipe: name or path of a recipe.
        bits: weight and activation width, ``"w4a4"``.
        input_shape: (C, H, W) of an image; known for named teachers.
        seed: decides images, order and crops; the same seed gives the same model on one machine.
        output: run folder; without it nothing is written.
        overrides: recipe values by dotted key.
        device: where to work; by default a GPU where there is one.
        progress: show bars or lines on standard error.
        resume: continue the run in ``output`` after an interruption.
        bank: folder of the synthetic images, shared between runs of one teacher, seed and
            synthesis recipe; by default inside ``output``.
        evaluation: labelled images to report accuracy on; they never influence the model.
        evaluate_every: also evaluate during fine-tuning, at the first record after every so many
            steps, to see the best accuracy beside the final one.

    Raises:
        SynqFastError: one of its kinds, for a bad argument, an unusable model, a folder that is
            taken, damaged files or a loss that is not finite. Finished work stays in ``output``.
    """
    run = _Run(
        load_teacher(teacher, input_shape=input_shape),
        load_recipe(recipe, overrides),
        BitWidths.parse(bits),
        seed,
        chosen_device(device),
        Reporter(progress),
    )
    folder = run.open_folder(output, resume)
    run.evaluate_on(evaluation)
    bank_path = Path(bank) if bank is not None else (folder.bank if folder else None)
    images = run.synthesize(bank_path)
    return run.finish(run.student_from(images, folder, evaluate_every), folder)


@torch.inference_mode(False)
def synthesize(
    teacher: str | nn.Module | Teacher,
    output: str | Path,
    recipe: str | Path | Recipe = "synq-digits",
    input_shape: tuple[int, int, int] | None = None,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Bank:
    """Make the synthetic images of a recipe alone; arguments as in ``quantize``.

    Args:
        teacher: a module, a ``Teacher``, or a name that ``load_teacher`` knows.
        output: folder of the bank; shards that it holds already are kept.
        recipe: name or path of a recipe; only its synthesis section matters.
        input_shape: (C, H, W) of an image; known for named teachers.
        seed: decides the images.
        overrides: recipe values by dotted key.
        device: where to work; by default a GPU where there is one.
        progress: show bars or lines on standard error.
    """
    run = _Run(
        load_teacher(teacher, input_shape=input_shape),
        load_recipe(recipe, overrides),
        BitWidths(8, 8),
        seed,
        chosen_device(device),
        Reporter(progress),
    )
    return run.synthesize(Path(output))


def chosen_device(device: torch.device | str | None) -> torch.device:
    """The device that was asked for, or a GPU where there is one.

    Raises:
        SynqFastError: this machine has no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SynqFastError(f'cannot work on device "{device}": {reason}') from error


class _Run:
    """The state that the phases share."""

    def __init__(
        self,
        teacher: Teacher,
        recipe: Recipe,
        bits: BitWidths,
        seed: int,
        device: torch.device,
        reporter: Reporter,
    ) -> None:
        keep_freed_memory()
        dtypes = {p.dtype for p in teacher.module.parameters()} - {torch.float32}
        if dtypes:
            raise ModelError(
                f"{teacher.name} holds parameters of {', '.join(sorted(map(str, dtypes)))}; "
                f"quantization starts from float32: convert it with .float()"
            )
        self.teacher = teacher.to(device)
        # torch's stubs lack the form with a memory format alone.
        self.teacher.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe, self.bits, self.seed, self.device = recipe, bits, seed, device
        self.reporter = reporter
        self.graph = trace(self.teacher.module, recipe.quantization.leaf_modules)
        example = torch.zeros(2, *teacher.input_shape, device=device)
        self.points = find_tap_points(self.graph, example)
        self.metrics: Metrics = {"seconds": {}}
        self.evaluation: EvaluationSet | None = None

    def identity(self, *sections: DataclassInstance) -> dict[str, str]:
        """What a result depends on, each in a form that two runs can compare."""
        weights = hashlib.sha256(self.graph.code.encode())
        for name, value in sorted(self.graph.state_dict().items()):
            weights.update(name.encode())
            weights.update(_raw_bytes(value))
        return {
            "teacher": weights.hexdigest(),
            "input_shape": json.dumps(self.teacher.input_shape),
            "seed": str(self.seed),
            **{type(section).__name__: json.dumps(asdict(section)) for section in sections},
        }

    def fingerprint(self, *sections: DataclassInstance) -> str:
        """One hash of the identity."""
        return hashlib.sha256(json.dumps(self.identity(*sections)).encode()).hexdigest()

    def open_folder(self, output: str | Path | None, resume: bool) -> RunFolder | None:
        """The run folder, or None where nothing is to be written."""
        if output is None:
            return None
        identity = {**self.identity(), "bits": str(self.bits)}
        return RunFolder(Path(output), identity, dump_recipe(self.recipe), resume)

    def evaluate_on(self, evaluation: str | Path | EvaluationSet | None) -> None:
        """Remember the evaluation set and measure the teacher on it."""
        if evaluation is None:
            return
        if isinstance(evaluation, str | Path):
            evaluation = load_dataset(evaluation, self.teacher)
        self.evaluation = evaluation
        self._measure("float32", self.graph)

    @contextmanager
    def _phase(self, title: str, total: int) -> Iterator[Phase]:
        started = time.perf_counter()
        with self.reporter.phase(title, total) as phase:
            yield phase
        self.metrics["seconds"][title] = round(time.perf_counter() - started, 2)

    def _measure(self, name: str, model: nn.Module) -> EvaluationResult | None:
        if self.evaluation is None:
            return None
        with torch.no_grad(), held_weights(model):
            bar = self.reporter.show and name != "latest"  # fine-tuning shows its own then
            result = evaluate(model, self.evaluation, progress=bar)
        self.metrics[name] = asdict(result)
        self.reporter.line(f"{name}: top-1 {result.top1:.2f} % of {result.count} images")
        return result

    def synthesize(self, folder: Path | None) -> Bank:
        """The image bank, from the shards that are there and those that are missing."""
        recipe = self.recipe.synthesis
        synthesizer = PixelSynthesizer(
            BatchNormTeacher(self.graph, self.points),
            recipe,
            input_shape=self.teacher.input_shape,
            classes=self.teacher.num_classes,
            seed=self.seed,
            device=self.device,
        )
        store = BankFolder(folder, self.fingerprint(recipe)) if folder else None
        counts = [
            min(recipe.batch_size, recipe.images - start)
            for start in range(0, recipe.images, recipe.batch_size)
        ]
        shape = self.teacher.input_shape
        size = 4 * recipe.images * math.prod(shape)
        streamed = streams(self.recipe.finetune.bank, size, self.device, store)
        if streamed:
            self.reporter.line(f"{size / 1e9:.1f} GB of images stream from {folder}")
        assembly = BankAssembly(counts, shape, self.device, streamed=streamed)
        missing = []
        for index in range(len(counts)):
            if store is not None and (found := store.read(index)) is not None:
                assembly.put(index, found)
            else:
                missing.append(index)
        if missing and recipe.centers.weight:
            batches = -(-self.teacher.num_classes // recipe.batch_size)
            with self._phase("centers", batches * recipe.centers.steps) as phase:
                synthesizer.make_centers(_cumulative(phase, recipe.centers.steps))
        with self._phase("synthesis", len(missing) * recipe.steps) as phase:
            report = _cumulative(phase, recipe.steps, recipe.batch_size)
            for index in missing:
                shard = ImageBank(*synthesizer.batch(index, counts[index], report))
                if store is not None:
                    shard = store.write(index, shard)
                assembly.put(index, shard)
        return assembly.bank()

    def student_from(
        self, bank: Bank, folder: RunFolder | None, evaluate_every: int
    ) -> tuple[fx.GraphModule, list[Record]]:
        """Calibrate and fine-tune a student on the bank; returns it with its history."""
        student = build_student(self.graph, self.bits, self.recipe.quantization).eval()
        trainer = Trainer(
            SynqStep(self.graph, student, self.points, self.recipe.finetune),
            student,
            BatchSource(
                bank,
                self.recipe.finetune.batch_size,
                self.recipe.finetune.crop_scale,
                self.recipe.filter,
                self.seed,
            ),
            self.recipe.finetune,
            checkpoint=folder.checkpoint if folder else None,
            fingerprint=self.fingerprint(self.recipe, self.bits),
        )
        if trainer.resume():
            kept = folder.read_metrics() if folder else {}
            self.metrics |= {k: kept[k] for k in ("post-training", "best seen") if k in kept}
        else:
            self.calibrate(student, bank)
            self._measure("post-training", student)
            if folder is not None:
                folder.write_metrics(self.metrics)
        history = folder.read_history(trainer.done) if folder else []
        best = self.metrics.get("best seen", {"top1": 0.0, "step": 0})
        with self._phase("fine-tuning", self.recipe.finetune.steps) as phase:
            started = trainer.done

            def report(record: Record) -> None:
                before = int(history[-1]["step"]) if history else 0
                history.append(record)
                if folder is not None:
                    folder.append_history(record)
                done = int(record["step"])
                losses = {k: v for k, v in record.items() if k not in ("step", "learning_rate")}
                phase.update(done, losses, (done - started) * self.recipe.finetune.batch_size)
                if evaluate_every and done // evaluate_every > before // evaluate_every:
                    seen = self._measure("latest", student)
                    self.metrics.pop("latest", None)
                    if seen is not None and seen.top1 > best["top1"]:
                        best.update(top1=seen.top1, step=done)
                        self.metrics["best seen"] = best
                        if folder is not None:
                            folder.write_metrics(self.metrics)

            with closing(trainer.batches):
                trainer.run(report)
        return student, history

    @torch.no_grad()
    def calibrate(self, student: fx.GraphModule, bank: Bank) -> None:
        """Find the activation ranges on filtered synthetic images."""
        recipe = self.recipe.quantization
        batches = BatchSource(
            bank, recipe.calibration_batch_size, (1.0, 1.0), self.recipe.filter, self.seed
        )
        with (
            self._phase("calibration", recipe.calibration_batches) as phase,
            observing(student),
            held_weights(student),
            closing(batches),
        ):
            for step in range(recipe.calibration_batches):
                student(batches(step)[0])
                phase.update(step + 1, {})

    def finish(
        self, made: tuple[fx.GraphModule, list[Record]], folder: RunFolder | None
    ) -> QuantizationResult:
        """Measure, write and return the result."""
        student, history = made
        student.requires_grad_(False)
        last, best = self._measure("quantized", student), self.metrics.get("best seen")
        if last is not None and best is not None and last.top1 > best["top1"]:
            best.update(top1=last.top1, step=self.recipe.finetune.steps)
        result = QuantizationResult(
            student, history, self.metrics, self.teacher, self.bits, self.recipe
        )
        if folder is not None:
            result.save(folder.model)
            folder.write_metrics(self.metrics)
        return result


def _raw_bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _cumulative(
    phase: Phase, steps: int, images: int = 0
) -> Callable[[int, dict[str, float]], None]:
    """A report for optimizations of ``steps`` steps each that run one after the other."""
    finished = 0

    def report(step: int, values: dict[str, float]) -> None:
        nonlocal finished
        phase.update(finished + step, values, (finished + step) * images // steps)
        if step == steps:
            finished += steps

    return report


__all__ = ["QuantizationResult", "quantize", "synthesize"]
