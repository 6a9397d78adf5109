"""One run: the teacher in its forms, and the phases that make a quantized model of it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from synq_fast.bank.assembly import BankAssembly, streams
from synq_fast.bank.batches import BatchSource
from synq_fast.bank.images import Bank, BankFolder, ImageBank
from synq_fast.bank.shards import Shards
from synq_fast.data import EvaluationSet, load_dataset
from synq_fast.distributed import Ranks, restarted
from synq_fast.engine.evaluation import EvaluationResult, evaluate
from synq_fast.engine.identity import describe, fingerprint, weights_hash
from synq_fast.engine.kernels import kernels_in_use
from synq_fast.engine.result import Metrics, QuantizationResult
from synq_fast.engine.saved_model import build_student
from synq_fast.errors import ModelError
from synq_fast.finetune.calibration import calibrate
from synq_fast.finetune.data_parallel import BatchMean, part_of_batch, resume_together
from synq_fast.finetune.step import SynqStep
from synq_fast.finetune.trainer import Record, Trainer
from synq_fast.models import Teacher
from synq_fast.quant import (
    ActivationQuantizer,
    BitWidths,
    check_forms,
    chosen_placement,
    coverage_of,
    find_tap_points,
    held_weights,
    leaf_names,
    trace,
)
from synq_fast.recipes import Recipe, dump_recipe
from synq_fast.runtime.allocator import keep_freed_memory
from synq_fast.runtime.memory_format import channels_last
from synq_fast.runtime.progress import Phase, Reporter
from synq_fast.runtime.threads import limit_threads
from synq_fast.storage.run_folder import RunFolder
from synq_fast.synthesis.losses import BatchNormTeacher
from synq_fast.synthesis.pixel_checkpoint import PixelCheckpoints
from synq_fast.synthesis.pixels import PixelSynthesizer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Run:
    """The state that the phases share."""

    def __init__(
        self,
        teacher: Teacher,
        recipe: Recipe,
        bits: BitWidths,
        seed: int,
        device: torch.device,
        progress: bool,
        ranks: Ranks,
    ) -> None:
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
        self.ranks = ranks
        self.reporter = Reporter(progress and ranks.is_first)
        example = self.teacher.example()
        self.leaves = leaf_names(self.teacher.module, recipe.quantization.leaf_modules)
        self.graph = trace(self.teacher.module, example, self.leaves)
        placement = chosen_placement(recipe.quantization.placement, self.graph, self.leaves)
        quantization = replace(recipe.quantization, placement=placement)
        self.recipe = recipe = replace(recipe, quantization=quantization)
        self.points = find_tap_points(self.graph, example)
        self.image_teacher = BatchNormTeacher(self.graph, self.points)
        student = self.build_student()
        check_forms(self.teacher.module, self.graph, student, self.points)
        self.coverage = coverage_of(student)
        self.metrics: Metrics = {"seconds": {}, "kernels": kernels_in_use(device, self.reporter)}
        self.evaluation: EvaluationSet | None = None
        self.evaluates = False
        ranks.check_same({**self.identity, "recipe": dump_recipe(recipe), "bits": str(bits)})

    @cached_property
    def identity(self) -> dict[str, str]:
        """What every result depends on."""
        return {
            "teacher": weights_hash(self.graph),
            "input_shape": json.dumps(self.teacher.input_shape),
            "seed": str(self.seed),
        }

    def fingerprint(self, *sections: DataclassInstance) -> str:
        """One hash of the identity and of what else a result depends on."""
        return fingerprint({**self.identity, **describe(*sections)})

    def open_folder(self, output: str | Path | None, resume: bool) -> RunFolder | None:
        """The run folder, or None where this process writes nothing."""
        # Counted per machine, so the first rank's own count does not say it.
        again = any(self.ranks.collect(restarted()))
        if output is None or not self.ranks.is_first:
            return None
        resume = resume or (again and (Path(output) / "run.json").exists())
        identity = {**self.identity, "bits": str(self.bits)}
        seconds = self.recipe.finetune.checkpoint_seconds
        return RunFolder(Path(output), identity, dump_recipe(self.recipe), resume, seconds)

    def build_student(self) -> fx.GraphModule:
        """The student before calibration, in eval mode."""
        quantization = self.recipe.quantization
        return build_student(self.graph, self.bits, quantization, self.leaves).eval()

    def report_coverage(self) -> None:
        """Say what will be quantized, before the first work."""
        self.metrics["coverage"] = self.coverage.as_dict()
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
        self._measure("float32", self.graph)

    @contextmanager
    def _phase(self, title: str, total: int) -> Iterator[Phase]:
        started = time.perf_counter()
        with self.reporter.phase(title, total) as phase:
            yield phase
        self.metrics["seconds"][title] = round(time.perf_counter() - started, 2)

    def _measure(self, name: str, model: nn.Module) -> EvaluationResult | None:
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

    def synthesize(self, folder: Path | None) -> Bank:
        """The image bank, from the shards that are there and those that are missing."""
        recipe, ranks = self.recipe.synthesis, self.ranks
        seconds = self.recipe.finetune.checkpoint_seconds
        synthesizer = PixelSynthesizer(
            self.image_teacher,
            recipe,
            input_shape=self.teacher.input_shape,
            classes=self.teacher.num_classes,
            seed=self.seed,
            device=self.device,
            checkpoints=PixelCheckpoints(folder, seconds) if folder else None,
        )
        store = None
        if folder is not None:
            with ranks.first():
                store = BankFolder(folder, self.fingerprint(recipe))
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
        shards = Shards(len(counts), store, ranks)
        for index in shards.found:
            synthesizer.forget(index)
        missing = shards.missing()
        if missing and recipe.centers.weight:
            batches = -(-self.teacher.num_classes // recipe.batch_size)
            steps = len(ranks.mine(range(batches))) * recipe.centers.steps
            with self._phase("centers", steps) as phase:
                synthesizer.make_centers(phase.in_turn(recipe.centers.steps), ranks)
        own = ranks.mine(missing)
        with self._phase("synthesis", len(own) * recipe.steps) as phase:
            report = phase.in_turn(recipe.steps, recipe.batch_size)
            for index in own:
                shards.add(index, ImageBank(*synthesizer.batch(index, counts[index], report)))
                synthesizer.forget(index)
            for index, shard in shards.gather():
                assembly.put(index, shard)
        return assembly.bank()

    def student_from(
        self, bank: Bank, folder: RunFolder | None, evaluate_every: int
    ) -> tuple[fx.GraphModule, list[Record]]:
        """Calibrate and fine-tune a student on the bank; returns it with its history."""
        ranks, recipe = self.ranks, self.recipe.finetune
        student = self.build_student()
        step = SynqStep(self.graph, student, self.points, recipe)
        part = part_of_batch(ranks, recipe.batch_size)
        share = (part.stop - part.start) / recipe.batch_size
        batches = BatchSource(
            bank, recipe.batch_size, recipe.crop_scale, self.recipe.filter, self.seed, part
        )
        trainer = Trainer(
            step,
            student,
            batches,
            recipe,
            checkpoint=folder.checkpoint if folder else None,
            fingerprint=self.fingerprint(self.recipe, self.bits),
            reduce=BatchMean(ranks, step.parameters, share) if ranks.size > 1 else None,
        )
        if resume_together(trainer, ranks):
            kept = ranks.from_first(lambda: folder.read_metrics() if folder else {})
            self.metrics |= {k: kept[k] for k in ("post-training", "best seen") if k in kept}
        else:
            self.calibrate(student, bank, folder)
            trainer.save()
        if folder is not None:
            folder.calibration.discard()
        if trainer.done == 0 and "post-training" not in self.metrics:
            self._measure("post-training", student)
            if folder is not None:
                folder.write_metrics(self.metrics)
        history = ranks.from_first(lambda: folder.read_history(trainer.done) if folder else [])
        best = self.metrics.get("best seen", {"top1": 0.0, "step": 0})
        with self._phase("fine-tuning", recipe.steps) as phase:
            started = trainer.done

            def report(record: Record) -> None:
                ranks.check_equal(student, f"after step {record['step']}")
                before = int(history[-1]["step"]) if history else 0
                history.append(record)
                if folder is not None:
                    folder.append_history(record)
                done = int(record["step"])
                losses = {k: v for k, v in record.items() if k not in ("step", "learning_rate")}
                phase.update(done, losses, (done - started) * recipe.batch_size)
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

    def calibrate(self, student: fx.GraphModule, bank: Bank, folder: RunFolder | None) -> None:
        """Find the activation ranges on filtered synthetic images.

        Every rank sees all batches: a range depends on those of the layers before it, batch by
        batch, so ranks that saw a part each would find other ranges than one rank alone.
        """
        recipe = self.recipe.quantization
        batches = BatchSource(
            bank, recipe.calibration_batch_size, (1.0, 1.0), self.recipe.filter, self.seed
        )
        with self._phase("calibration", recipe.calibration_batches) as phase, closing(batches):
            calibrate(
                student,
                batches,
                recipe.calibration_batches,
                report=lambda done: phase.update(done, {}),
                checkpoint=folder.calibration if folder else None,
                fingerprint=self.fingerprint(self.recipe, self.bits),
                precision=self.recipe.finetune.precision,
            )
        # Equal already on equal devices; others may round differently.
        for quantizer in student.modules():
            if isinstance(quantizer, ActivationQuantizer):
                self.ranks.widen(quantizer.range_min, quantizer.range_max)

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
        with self.ranks.first():
            if folder is not None:
                result.save(folder.model)
                folder.write_metrics(self.metrics)
        return result
