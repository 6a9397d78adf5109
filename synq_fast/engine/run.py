"""One run: the teacher in its forms, and what the stages share."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from synq_fast.bank.batches import Batches
from synq_fast.bank.mixing import MixedBatches
from synq_fast.bank.source import ImageSource
from synq_fast.data import EvaluationSet, load_dataset
from synq_fast.distributed import ALONE, Ranks, restarted
from synq_fast.engine.about import about
from synq_fast.engine.evaluation import EvaluationResult, evaluate
from synq_fast.engine.identity import describe, fingerprint, weights_hash
from synq_fast.engine.image_losses import with_image_losses
from synq_fast.engine.kernels import kernels_in_use
from synq_fast.engine.result import Metrics, QuantizationResult
from synq_fast.engine.shown import show_images
from synq_fast.engine.stages import STAGES, Made, widths
from synq_fast.engine.student import build_student, rewritten
from synq_fast.errors import ModelError
from synq_fast.finetune.data_parallel import batch_mean, part_of_batch
from synq_fast.finetune.step import Step
from synq_fast.finetune.training import Training, training_loop
from synq_fast.graph.equalization import equalized_readers
from synq_fast.graph.norm_folding import foldable_norms, folded_like, has_foldable_norms
from synq_fast.graph.rotation import is_rotated
from synq_fast.models import Teacher
from synq_fast.optimize.loop import Loop
from synq_fast.quant import (
    BitWidths,
    check_forms,
    chosen_placement,
    coverage_of,
    find_structure,
    held_weights,
    leaf_names,
    trace,
)
from synq_fast.quant.allocation import check_average
from synq_fast.quant.bits import LOWEST, AutoBits, Bits
from synq_fast.quant.settings import Quantization
from synq_fast.quant.widths import Widths, widths_of
from synq_fast.recipes import Recipe, dump_recipe
from synq_fast.reporting.board import Board
from synq_fast.runtime.allocator import keep_freed_memory
from synq_fast.runtime.memory_format import channels_last
from synq_fast.runtime.progress import Phase, Reporter
from synq_fast.runtime.threads import limit_threads
from synq_fast.storage.checkpoint_file import CheckpointFile
from synq_fast.storage.history import HistoryRecord
from synq_fast.storage.run_folder import RunFolder
from synq_fast.synthesis.kept import Kept
from synq_fast.synthesis.synthesizer import Round, Synthesizer
from synq_fast.synthesis.teacher import ImageTeacher

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Run:
    """A teacher, a recipe and widths on a device: what stages, benchmarks and tests work with."""

    def __init__(
        self,
        teacher: Teacher,
        recipe: Recipe,
        bits: Bits,
        device: torch.device,
        *,
        seed: int = 0,
        progress: bool = False,
        ranks: Ranks = ALONE,
        bank: Path | None = None,
        evaluate_every: int = 0,
        board: Board | None = None,
    ) -> None:
        """Trace the teacher and compare every form of it with the user's module.

        Args:
            teacher: the model; it is moved to the device.
            recipe: its method.
            bits: widths, or the average for which widths are found once there are images.
            device: where to work.
            seed: decides images, order and crops.
            progress: show it on standard error.
            ranks: the processes that work together.
            bank: folder of the synthetic images; by default inside the run's.
            evaluate_every: steps of training after which the model is measured on the way; 0: not.
            board: shows records and images; on the first rank alone.

        Raises:
            ModelError: the teacher cannot be used.
            TraceError: it cannot be traced, or a form of it computes something else.
            RecipeError: the recipe names what the model does not have, or an average of bits is
                out of reach.
        """
        keep_freed_memory()
        limit_threads()
        tensors = (*teacher.module.parameters(), *teacher.module.buffers())
        dtypes = {t.dtype for t in tensors if t.is_floating_point()} - {torch.float32}
        if dtypes:
            raise ModelError(
                f"{teacher.name} holds numbers of {', '.join(sorted(map(str, dtypes)))}; "
                f"quantization starts from float32: convert it with .float()"
            )
        self.teacher = teacher.to(device)
        channels_last(self.teacher.module)
        self.bits, self.seed, self.device = bits, seed, device
        self.ranks, self.evaluate_every, self.bank_folder = ranks, evaluate_every, bank
        self.board = board if ranks.is_first else None
        self.folder: RunFolder | None = None
        self.output: Path | None = None
        self.values_folder: Path | None = None
        self.reporter = Reporter(progress and ranks.is_first)
        self._within = 0.0
        example = self.teacher.example()
        self.leaves = leaf_names(self.teacher.module, recipe.quantization.leaf_modules)
        self.traced = trace(self.teacher.module, example, self.leaves)
        self.graph = rewritten(self.traced, recipe.quantization)
        placement = chosen_placement(recipe.quantization.placement, self.graph, self.leaves)
        rotate = "always" if is_rotated(self.graph) else "never"
        readers = equalized_readers(self.graph)
        equalize = "always" if readers else "never"
        given = recipe.quantization.fold_norms
        fold_norms = given if has_foldable_norms(self.graph) else "never"
        quantization = replace(
            recipe.quantization,
            placement=placement,
            rotate=rotate,
            equalize=equalize,
            fold_norms=fold_norms,
        )
        self.recipe = recipe = replace(recipe, quantization=quantization)
        self._say_without_folds(given)
        if readers:
            self.reporter.line(f"equalize: channels before {readers} depthwise convolutions")
        self.structure = find_structure(self.graph, example)
        made = "synthesis" in recipe.stages
        # As the user gave it: images do not depend on how it is quantized, and widths share them.
        as_given = self.graph is self.traced
        self.image_teacher = ImageTeacher(
            self.traced,
            self.structure if as_given else find_structure(self.traced, example),
            swing=made and recipe.synthesis.swing,
            sparse=made and recipe.synthesis.sparse.share > 0,
        )
        self.recipe = recipe = with_image_losses(recipe, self.image_teacher, self.teacher)
        student = self.build_student()
        # An equalized network differs where ReLU6 ends, on noise more than on images.
        as_traced = self.traced if readers else None
        check_forms(self.teacher.module, self.graph, student, self.structure, as_traced)
        self.coverage = coverage_of(student)
        if isinstance(bits, AutoBits):
            check_average(student, bits.average)
            self.coverage = replace(self.coverage, widths=None)
        self.metrics: Metrics = {"seconds": {}, "kernels": kernels_in_use(device, self.reporter)}
        self.evaluation: EvaluationSet | None = None
        self.evaluates = False
        ranks.check_same({**self.identity, "recipe": dump_recipe(recipe), "bits": str(bits)})

    def _say_without_folds(self, asked: str) -> None:
        """Say why no norm is folded, where that was asked for."""
        if asked == "never" or self.recipe.quantization.fold_norms != "never":
            return
        others = foldable_norms(self.graph)[1]
        named = next((f"{name}: {reason}" for name, reason in others.items()), "there is none")
        self.reporter.line(f"fold_norms: no LayerNorm can be folded ({named})")

    @cached_property
    def identity(self) -> dict[str, str]:
        """What every result depends on."""
        return {
            "teacher": weights_hash(self.traced),
            "input_shape": json.dumps(self.teacher.input_shape),
            "seed": str(self.seed),
        }

    def fingerprint(self, *sections: DataclassInstance) -> str:
        """One hash of the identity and of what else a result depends on."""
        return fingerprint({**self.identity, **describe(*sections)})

    def student_fingerprint(self, student: fx.GraphModule) -> str:
        """One hash of all that a student's weights and ranges depend on."""
        return self.fingerprint(self.recipe, self.bits, widths_of(student))

    def open_folder(self, output: Path | None, resume: bool, bits: str = "") -> None:
        """Create the run's folder, or open that of an interrupted run; the first rank writes it.

        Args:
            output: the folder; None: nothing is written.
            resume: go on with what is there.
            bits: what the folder is for, by default the run's widths.
        """
        # Counted per machine, so the first rank's own count does not say it.
        again = any(self.ranks.collect(restarted()))
        self.output = output
        if output is not None and self.bank_folder is None:
            self.bank_folder = output / "bank"
        if output is not None:
            # Ranks may share a file system, and need not.
            own = "values" if self.ranks.is_first else f"values-{self.ranks.rank}"
            self.values_folder = output / own
        if output is not None and self.ranks.is_first:
            resume = resume or (again and (output / "run.json").exists())
            identity = {**self.identity, "bits": bits or str(self.bits)}
            self.folder = RunFolder(output, identity, dump_recipe(self.recipe), resume)
            self.folder.write_about(about(self))
        kept = self.ranks.from_first(lambda: self.folder.read_metrics() if self.folder else {})
        self.metrics |= {k: kept[k] for k in ("post-training", "best seen", "seconds") if k in kept}

    def checkpoint(self, name: str) -> CheckpointFile | None:
        """A file in the run's folder, on the rank that writes it."""
        seconds = self.recipe.finetune.checkpoint_seconds
        return CheckpointFile(self.folder.checkpoint(name), seconds) if self.folder else None

    def write_metrics(self) -> None:
        """Keep the metrics in the folder, where there is one."""
        if self.folder is not None:
            self.folder.write_metrics(self.metrics)

    def read_history(self, source: Mapping[str, str], last_step: int) -> list[HistoryRecord]:
        """The records of one training up to a step, from the folder; see ``RunFolder``."""
        found = self.ranks.from_first(
            lambda: self.folder.read_history(source, last_step) if self.folder else []
        )
        self.show_records(found)
        return found

    def append_history(self, record: HistoryRecord) -> None:
        """Keep a record in the folder, where there is one."""
        if self.folder is not None:
            self.folder.append_history(record)
        self.show_records([record])

    def show_records(self, records: Iterable[HistoryRecord]) -> None:
        """Show records of this process, or those that it goes on from."""
        if self.board is not None:
            for record in records:
                self.board.add(record)

    def build_student(
        self, bits: BitWidths | Widths | None = None, quantization: Quantization | None = None
    ) -> fx.GraphModule:
        """The student before calibration, in eval mode.

        Args:
            bits: by default the run's; the least that there are, while those are to be found.
            quantization: by default the recipe's.
        """
        if bits is None:
            bits = BitWidths(LOWEST, LOWEST) if isinstance(self.bits, AutoBits) else self.bits
        recipe = quantization or self.recipe.quantization
        return build_student(self.graph, bits, recipe, self.leaves).eval()

    def report_coverage(self) -> None:
        """Say what will be quantized, before the first work."""
        self.metrics["coverage"] = self.coverage.as_dict()
        self.write_metrics()
        for line in self.coverage.lines():
            self.reporter.line(line)

    def evaluate_on(self, evaluation: str | Path | EvaluationSet | None) -> None:
        """Remember the evaluation set and measure the teacher on it."""
        if evaluation is None:
            return
        self.evaluates = True
        if self.ranks.is_first:
            if isinstance(evaluation, str | os.PathLike):
                evaluation = load_dataset(evaluation, self.teacher)
            self.evaluation = evaluation
        self.measure("float32", self.graph)
        self.write_metrics()

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Phase]:
        """Show progress, and keep the seconds that the block takes beside phases within it."""
        started, before, self._within = time.perf_counter(), self._within, 0.0
        with self.reporter.phase(title, total) as phase:
            yield phase
        whole = time.perf_counter() - started
        # Of a resumed run, with what earlier processes took for it.
        took = self.metrics["seconds"].get(title, 0.0) + whole - self._within
        self.metrics["seconds"][title] = round(took, 2)
        self._within = before + whole

    def measure(self, name: str, model: nn.Module) -> EvaluationResult | None:
        """The model's accuracy, kept under ``name``; None where there is no evaluation set."""
        if not self.evaluates:
            return None

        def measured() -> EvaluationResult:
            assert self.evaluation is not None
            bar = self.reporter.show and name != "latest"  # fine-tuning shows its own then
            with torch.no_grad(), held_weights(model):
                return evaluate(model, self.evaluation, progress=bar)

        result = self.ranks.from_first(measured)
        self.metrics[name] = asdict(result)
        self.reporter.line(f"{name}: top-1 {result.top1:.2f} % of {result.count} images")
        return result

    def synthesizer(self, folder: Path | None = None, round_: Round | None = None) -> Synthesizer:
        """Makes images from the teacher; in a folder, goes on where it was."""
        seconds = self.recipe.finetune.checkpoint_seconds
        return Synthesizer(
            self.image_teacher,
            self.recipe.synthesis,
            input_shape=self.teacher.input_shape,
            classes=self.teacher.num_classes,
            seed=self.seed,
            device=self.device,
            valid=self.teacher.valid_range(),
            kept=Kept(folder, seconds) if folder else None,
            round_=round_,
        )

    def step(self, student: fx.GraphModule) -> Step:
        """The recipe's training step."""
        teacher = folded_like(self.graph, student)
        return Step(teacher, student, self.structure, self.recipe.finetune)

    def training_batches(
        self, images: ImageSource, part: slice, student: nn.Module | None = None
    ) -> Batches:
        """A part of each batch of training, mixed where the recipe says so."""
        recipe = self.recipe.finetune
        size, crop_scale = recipe.batch_size, recipe.crop_scale
        if not recipe.mixup:
            return images.batches(size, crop_scale, part, student)
        whole = images.batches(size, crop_scale, student=student)
        return MixedBatches(whole, size, recipe.mixup, self.seed, part)

    def training(self, student: fx.GraphModule, images: ImageSource) -> Loop:
        """The recipe's training on all ranks, from the start or where the folder's run was."""
        ranks, recipe = self.ranks, self.recipe.finetune
        part, step = part_of_batch(ranks, recipe.batch_size), self.step(student)
        mean = batch_mean(ranks, step.parameters, part, recipe.batch_size)
        batches = self.training_batches(images, part, student)
        loop = training_loop(
            Training(step, student, batches, recipe, reduce=mean),
            checkpoint=self.checkpoint("checkpoint"),
            fingerprint=self.student_fingerprint(student),
        )
        loop.resume(ranks)
        return loop

    def stages(self, before: str = "") -> Made:
        """What the recipe names, in order; where ``before`` is a stage, what comes before it."""
        made = Made(self.build_student())
        for name in self.recipe.stages:
            if name == before:
                break
            # Ranges are found for widths, and widths with images.
            if name == "calibration" and isinstance(self.bits, AutoBits):
                made = widths(self, made)
            had_images = made.images is not None
            made = STAGES[name](self, made)
            if not had_images:
                show_images(self, made.source)
        return made

    def finish(self, made: Made) -> QuantizationResult:
        """Measure, write and return the result."""
        student = made.student.requires_grad_(False)
        last, best = self.measure("quantized", student), self.metrics.get("best seen")
        if last is not None and best is not None and last.top1 > best["top1"]:
            best.update(top1=last.top1, step=self.recipe.finetune.steps)
        result = QuantizationResult(
            student, made.history, self.metrics, self.teacher, self.bits, self.recipe
        )
        if "generator" in self.recipe.stages:
            show_images(self, made.source, self.recipe.finetune.steps)
        with self.ranks.first():
            if self.folder is not None:
                result.save(self.folder.model)
            self.write_metrics()
        return result
