"""Recipes beside each other: every recipe at every width from every seed, and what each loses."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from synq_fast.arguments import whole_number
from synq_fast.data import EvaluationSet, load_dataset
from synq_fast.engine.calls import quantize, synthesize
from synq_fast.engine.identity import bank_name, evaluation_hash, fingerprint
from synq_fast.engine.published_results import published_result
from synq_fast.errors import ArgumentError, DataError
from synq_fast.models import Teacher, load_teacher
from synq_fast.quant.bits import Bits, folder_name, parse_bits
from synq_fast.quant.settings import Quantization
from synq_fast.recipes import Recipe, dump_recipe, load_recipe
from synq_fast.runtime.progress import Reporter
from synq_fast.storage.files import write_text
from synq_fast.storage.paths import user_path
from synq_fast.storage.results_file import read_results

_FILE = "comparison.json"


@dataclass(frozen=True)
class Trial:
    """One run of a comparison."""

    recipe: str
    bits: str
    seed: int
    policy: str
    """What else decides the widths, so that rows that differ in it are never taken for equal."""
    float32: float
    """Top-1 of the teacher in percent."""
    calibrated: float
    """Of the quantized model before training."""
    top1: float
    """Of the model after the last step."""
    images: int
    """On how many labelled images top-1 was counted."""
    minutes: float
    fingerprint: str


@dataclass(frozen=True)
class Row:
    """The trials of one recipe at one width."""

    recipe: str
    bits: str
    policy: str
    float32: float
    top1: tuple[float, ...]
    """In percent, by seed."""
    minutes: float

    @property
    def mean(self) -> float:
        """Mean top-1 in percent."""
        return statistics.fmean(self.top1)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds in points; None for one seed."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else None

    @property
    def lost(self) -> float:
        """Points below the teacher."""
        return self.float32 - self.mean


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found."""

    network: str
    trials: tuple[Trial, ...]

    @property
    def images(self) -> int:
        """On how many labelled images top-1 was counted."""
        return self.trials[0].images if self.trials else 0

    @property
    def standard_error(self) -> float:
        """Of the teacher's top-1 in points, which the choice of the labelled images alone makes."""
        share = self.trials[0].float32 / 100 if self.trials else 0.0
        return 100 * math.sqrt(share * (1 - share) / max(1, self.images))

    def rows(self) -> list[Row]:
        """The trials by width, recipe and policy, in the order in which they were asked for."""
        groups: dict[tuple[str, str, str], list[Trial]] = {}
        for trial in self.trials:
            groups.setdefault((trial.bits, trial.recipe, trial.policy), []).append(trial)
        return [
            Row(
                recipe,
                bits,
                policy,
                group[0].float32,
                tuple(trial.top1 for trial in group),
                statistics.fmean(trial.minutes for trial in group),
            )
            for (bits, recipe, policy), group in groups.items()
        ]

    def table(self) -> str:
        """The rows as Markdown."""
        lines = [
            f"{self.network}: top-1 in % of {self.images} images "
            f"(standard error of the teacher's {self.standard_error:.2f})",
            "",
            "| bits | recipe | ends and image | float32 | top-1 | lost | seeds | minutes "
            "| published, of its float32 |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows():
            spread = "" if row.spread is None else f" ± {row.spread:.2f}"
            published = published_result(self.network, row.recipe, row.bits)
            lines.append(
                f"| {row.bits} | {row.recipe} | {row.policy} | {row.float32:.2f} | "
                f"{row.mean:.2f}{spread} | {row.lost:.2f} | {len(row.top1)} | {row.minutes:.1f} | "
                f"{published or '-'} |"
            )
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        """The table."""
        return self.table()


class _Task(NamedTuple):
    teacher: Teacher
    recipe: Recipe
    bits: str
    seed: int
    folder: Path | None
    bank: Path | None
    evaluation: EvaluationSet
    identity: str
    """Of the teacher's weights and of the labelled images."""
    device: str | None
    progress: bool
    threads: int | None


def compare(
    teacher: str | nn.Module | Teacher,
    recipes: Sequence[str | Path | Recipe],
    bits: Sequence[str | Bits] = ("w4a4",),
    seeds: Sequence[int] = (0, 1, 2),
    evaluation: str | Path | EvaluationSet | None = None,
    output: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    input_shape: tuple[int, int, int] | None = None,
    device: torch.device | str | None = None,
    jobs: int = 1,
    progress: bool = True,
) -> Comparison:
    """Quantize a network by several recipes and count what each loses.

    Runs whose images come from the same synthesis share them. With ``output`` a killed comparison,
    called again, goes on where it was; finished runs are not done again.

    Args:
        teacher: as ``quantize`` takes it.
        recipes: names, paths or recipes.
        bits: widths.
        seeds: of every recipe and width.
        evaluation: labelled images; they never influence a model.
        output: folder of runs, images and results; without it nothing is written.
        overrides: recipe values by dotted key, of every recipe that has them.
        input_shape: (C, H, W) of an image; known for named teachers.
        device: where to work.
        jobs: runs at a time, each in a process of its own; they share the machine's threads.
        progress: show each run's progress on standard error.

    Raises:
        ArgumentError: nothing to compare, or ``jobs`` is no whole number from 1.
        DataError: no labelled images are given.
        SynqFastError: as ``quantize``.
    """
    jobs = whole_number("jobs", jobs, 1)
    for name, given in (("recipes", recipes), ("bits", bits), ("seeds", seeds)):
        if isinstance(given, str) or not given:
            raise ArgumentError(f"{name} must be a list of at least one, got {given!r}")
    if evaluation is None:
        raise DataError("a comparison counts top-1: name labelled images with evaluation or --data")
    chosen = [load_recipe(recipe, overrides) for recipe in recipes]
    loaded = load_teacher(teacher, input_shape=input_shape)
    if isinstance(evaluation, str | os.PathLike):
        evaluation = load_dataset(evaluation, loaded)
    identity = evaluation_hash(loaded, evaluation)
    folder = None if output is None else user_path(output) / loaded.name.replace("/", "-")
    threads = max(1, torch.get_num_threads() // jobs) if jobs > 1 else None
    tasks = [
        _Task(
            loaded,
            recipe,
            str(width),
            whole_number("seed", seed),
            folder and folder / recipe.name / folder_name(width) / f"seed-{seed}",
            folder and folder / "banks" / bank_name(recipe, seed),
            evaluation,
            identity,
            None if device is None else str(device),
            progress and jobs == 1,
            threads,
        )
        for width in map(parse_bits, bits)
        for recipe in chosen
        for seed in seeds
    ]
    done = {} if folder is None else read_results(folder / _FILE, "trials", Trial)
    waiting = [task for task in tasks if _identity(task) not in done]
    reporter = Reporter(progress)
    for number, trial in enumerate(_run(waiting, jobs, reporter), 1):
        done[trial.fingerprint] = trial
        reporter.line(
            f"run {number} of {len(waiting)}, {trial.recipe} {trial.bits} seed {trial.seed}: "
            f"top-1 {trial.top1:.2f} % of {trial.images} images, {trial.minutes:.1f} min"
        )
        if folder is not None:
            _write(folder, Comparison(loaded.name, tuple(done.values())))
    trials = tuple(done[_identity(task)] for task in tasks)
    return Comparison(loaded.name, trials)


def _run(tasks: Sequence[_Task], jobs: int, reporter: Reporter) -> Iterator[Trial]:
    """Do the tasks, those that make images for others first."""
    if jobs == 1 or len(tasks) < 2:
        yield from map(_trial, tasks)
        return
    makers = {task.bank: task for task in tasks if task.bank and "synthesis" in task.recipe.stages}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        if makers:
            reporter.line(f"making the images of {len(tasks)} runs, {jobs} sets at a time")
        for number, _ in enumerate(pool.map(_images, makers.values()), 1):
            reporter.line(f"images {number} of {len(makers)} are there")
        yield from pool.map(_trial, tasks)


def _images(task: _Task) -> None:
    _limit(task)
    assert task.bank is not None
    synthesize(
        task.teacher, task.bank, task.recipe, seed=task.seed, device=task.device, progress=False
    )


def _trial(task: _Task) -> Trial:
    _limit(task)
    result = quantize(
        task.teacher,
        task.recipe,
        task.bits,
        seed=task.seed,
        output=task.folder,
        bank=task.bank,
        device=task.device,
        progress=task.progress,
        evaluation=task.evaluation,
        resume=task.folder is not None and (task.folder / "run.json").exists(),
    )
    accuracy = {
        name: result.metrics[name]["top1"] for name in ("float32", "post-training", "quantized")
    }
    return Trial(
        task.recipe.name,
        task.bits,
        task.seed,
        policy_of(result.recipe.quantization),
        accuracy["float32"],
        accuracy["post-training"],
        accuracy["quantized"],
        result.metrics["quantized"]["count"],
        round(sum(result.metrics["seconds"].values()) / 60, 2),
        _identity(task),
    )


def _limit(task: _Task) -> None:
    if task.threads is not None:
        torch.set_num_threads(task.threads)


def policy_of(quantization: Quantization) -> str:
    """What decides the widths of a model beside ``bits``, in a few words."""
    image = "image float" if quantization.placement == "after_relu" else "image 8"
    ends = f"ends {quantization.end_bits}" if quantization.end_bits else "ends as the rest"
    named = f", {len(quantization.layer_bits)} layers named" if quantization.layer_bits else ""
    return f"{ends}{named}, {image}"


def _identity(task: _Task) -> str:
    """What a trial depends on."""
    return fingerprint(
        {
            "teacher and images": task.identity,
            "recipe": dump_recipe(task.recipe),
            "bits": task.bits,
            "seed": str(task.seed),
        }
    )


def _write(folder: Path, comparison: Comparison) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _FILE, json.dumps(asdict(comparison), indent=2) + "\n")
    write_text(folder / "comparison.md", comparison.table())
