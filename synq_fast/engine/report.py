"""The report of a run: what its folder holds, measured and put on a page."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from synq_fast.bank.batches import Filter, filtered
from synq_fast.bank.images import spread
from synq_fast.engine.real_images import real_images
from synq_fast.engine.reported import FloatNetwork, RunFiles
from synq_fast.engine.student import build_student, round_weights
from synq_fast.errors import ArgumentError, RunFolderError
from synq_fast.finetune.losses import Distillation
from synq_fast.graph.norm_folding import folded_like
from synq_fast.models import Teacher
from synq_fast.ops import _installation
from synq_fast.quant import held_weights
from synq_fast.quant.sensitivity import divergence
from synq_fast.quant.widths import widths_of
from synq_fast.recipes import Recipe
from synq_fast.reporting.accuracy import accuracies
from synq_fast.reporting.contents import Agreement, Images, Missing, Report, RunReport
from synq_fast.reporting.images import difficulty, spectrum
from synq_fast.reporting.layers import Layers, measure_layers, sensitivities
from synq_fast.reporting.maps import Maps, compare_maps
from synq_fast.reporting.page import check_available, write_page
from synq_fast.runtime.out_of_memory import MORE_MEMORY, memory_errors
from synq_fast.runtime.progress import Reporter
from synq_fast.runtime.threads import limit_threads
from synq_fast.storage.paths import user_path

_AT_ONCE = 64
IMAGE_STAGES = ("synthesis", "generator")


@memory_errors("the report", MORE_MEMORY)
@torch.inference_mode(False)
def report(
    run_folder: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    teacher: str | nn.Module | Teacher | None = None,
    weights: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Path:
    """Write one HTML page on a run, which needs nothing beside itself to be read.

    An unfinished run has a page too. What cannot be shown is named there, with what brings it.
    Runs on the CPU; nothing in the folder changes but the page.

    Args:
        run_folder: what ``quantize`` wrote, or a folder of such folders: one for each width.
        path: the page, replaced if it is there; by default ``report.html`` in the folder.
        images: real images, whose spectrum is shown beside that of the synthetic ones: a folder of
            them in any arrangement, or a set that ``evaluate`` takes. They are used for nothing
            else.
        teacher: the float network, where it was given as a module and has no name by which it is
            found.
        weights: its checkpoint, where that is no longer where the run found it.
        progress: say on standard error what is being done.

    Returns:
        The path of the page.

    Raises:
        RunFolderError: the folder is missing or holds no run.
        ArgumentError: matplotlib or Jinja2 are not installed (extra ``report``).
        DataError: the real images cannot be read.
        StorageError: the page cannot be written.
    """
    check_available()
    limit_threads()
    say = Reporter(progress).line
    folder = user_path(run_folder)
    runs = [replace(run, given=teacher, weights=weights) for run in _opened(folder)]
    page = Report(folder.absolute().name, _network_name(runs), [])
    page.versions = _versions()
    sets: dict[str, Images] = {}
    real = None if images is None else _real_images(images, runs)
    for run in runs:
        say(f"{run.title}: reading")
        page.runs.append(_begun(run))
        _measure(run, page.runs[-1], sets, real, say)
        page.missing += run.missing
        run.release()
    page.images = list(sets.values())
    if images is None:
        page.missing.append(
            Missing("the spectrum of real images", "none were named: --images (images=)")
        )
    target = folder / "report.html" if path is None else user_path(path)
    say("drawing")
    return write_page(page, target)


def _opened(folder: Path) -> list[RunFiles]:
    """The runs, each with a title that the others do not have."""
    runs = [RunFiles.open(each) for each in run_folders(folder)]
    for titles in (
        [run.bits for run in runs],
        [f"{run.bits}, seed {run.identity.get('seed')}" for run in runs],
        [run.folder.name for run in runs],
    ):
        if len(set(titles)) == len(runs):
            break
    for run, title in zip(runs, titles, strict=True):
        run.title = title
    return runs


def run_folders(folder: Path) -> list[Path]:
    """The run folders that are meant: the folder itself, or those in it, the most bits first.

    Raises:
        RunFolderError: there are none.
    """
    if (folder / "run.json").is_file():
        return [folder]
    found = [p.parent for p in folder.glob("*/run.json")] if folder.is_dir() else []
    # What sensitivity has measured may lie beside them.
    found = [p for p in found if not (p / "sensitivity.json").exists()]
    if not found:
        reason = "holds no run, and no folder in it does" if folder.is_dir() else "is no folder"
        raise RunFolderError(
            f"{folder} {reason}: name what quantize wrote with --output, or the folder of one "
            f"width in it"
        )
    return sorted(found, key=_order)


def _order(folder: Path) -> tuple[bool, list[float], str]:
    """Widths from the most bits to the fewest, then others as people count."""
    is_width = bool(re.match(r"w\d+a\d+|auto", folder.name))
    numbers = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", folder.name)]
    return not is_width, [-n if is_width else n for n in numbers], folder.name


def _network_name(runs: Sequence[RunFiles]) -> str:
    names = dict.fromkeys(run.network.name for run in runs if run.network)
    return ", ".join(names) or "unknown network"


def _versions() -> dict[str, str]:
    return {name: v for name, v in _installation.report().versions.items() if v is not None}


def _begun(run: RunFiles) -> RunReport:
    metrics = run.metrics
    records = run.records()
    return RunReport(
        bits=run.title,
        seed=str(run.identity.get("seed", "?")),
        recipe=str(run.about.get("recipe", run.recipe.name if run.recipe else "?")),
        recipe_text=run.recipe_text,
        state=_state(run, records),
        accuracies=accuracies(metrics),
        coverage=metrics.get("coverage", {}),
        average_bits=metrics.get("average bits", {}),
        seconds=metrics.get("seconds", {}),
        records=records,
        about=run.about,
        kernels=metrics.get("kernels", {}),
    )


def _state(run: RunFiles, records: Sequence[dict[str, object]]) -> str:
    if run.is_finished:
        return ""
    done = ", ".join(run.metrics.get("seconds", {})) or "nothing"
    if not records:
        return f"Finished so far: {done}."
    last = records[-1]
    where = f"{last.get('stage')}"
    if "block" in last:
        where += f", block {last['block']}"
    return f"Finished so far: {done}; the last record is step {last.get('step')} of {where}."


def _measure(
    run: RunFiles,
    shown: RunReport,
    sets: dict[str, Images],
    real: tuple[str, Tensor] | None,
    say: Callable[[str], None],
) -> None:
    network, recipe = run.network, run.recipe
    if network is None:
        run.lacks("synthetic images", "nothing says how the network's images are normalised")
        return
    size = network.example().numel() // 2
    made = run.images(_count(size, 2**20, 24, 256))
    if not shown.accuracies:
        run.lacks("accuracy", "no labelled images were given: quantize --data (evaluation=)")
    student = run.student
    if recipe is None or made is None:
        return
    pixels, labels, total = made
    images = filtered(pixels, recipe.filter).contiguous(memory_format=torch.channels_last)
    floats = run.float_network
    logits = _logits(floats.graph, images) if floats else None
    where = str(run.bank) if run.bank and total else str(run.folder)
    of_images = tuple(r for r in shown.records if r.get("stage") in IMAGE_STAGES)
    shown.records = [r for r in shown.records if r.get("stage") not in IMAGE_STAGES]
    if where in sets:
        known = sets[where]
        sets[where] = _with_run(known, run.title)
    else:
        hard = None if logits is None else difficulty(logits, labels)
        made_of = (pixels, images, labels)
        found = _image_set(run, recipe, network, made_of, total, hard, real)
        sets[where] = replace(found, records=of_images)
    if student is None:
        return
    if floats is not None:
        floats = replace(floats, graph=folded_like(floats.graph, student))
    seen = images[spread(len(images), _count(size, 2**18, 8, 64))]
    few = images[spread(len(images), _count(size, 2**17, 4, 48))]
    shown.layers = _layers(run, recipe, student, floats, seen, few)
    if floats is None or logits is None:
        return
    with held_weights(student):
        own = _logits(student, images)
    same = (own.argmax(1) == logits.argmax(1)).double().mean()
    shown.agreement = Agreement(len(images), float(same), float(divergence(logits, own).mean()))
    shown.maps = _maps(run, network, student, floats, images, (logits, own))


def _count(size: int, values: int, least: int, most: int) -> int:
    """How many images of a size are looked at: of about so many values."""
    return max(least, min(most, values // size))


@torch.no_grad()
def _logits(network: fx.GraphModule, images: Tensor) -> Tensor:
    return torch.cat([network(part) for part in images.split(_AT_ONCE)])


def _with_run(images: Images, bits: str) -> Images:
    return replace(images, runs=(*images.runs, bits))


def _image_set(
    run: RunFiles,
    recipe: Recipe,
    network: Teacher,
    made: tuple[Tensor, Tensor, Tensor],
    total: int,
    hard: Tensor | None,
    real: tuple[str, Tensor] | None,
) -> Images:
    before, after, labels = made
    spectra = [spectrum("as synthesized", before)]
    if recipe.filter.kind != "none":
        spectra.append(spectrum("low-pass filtered", after))
    if real is not None:
        spectra.append(spectrum(f"real: {real[0]}", real[1]))
    loss = recipe.finetune.loss(Distillation)
    judged = (
        "finetune" in recipe.stages
        and recipe.finetune.steps > 0
        and loss is not None
        and loss.label_weight > 0
        and loss.soft_labels_only_if_difficult
    )
    return Images(
        runs=(run.title,),
        count=total,
        before=network.denormalize(before),
        after=network.denormalize(after),
        labels=labels,
        filter=_filter_in_words(recipe.filter),
        cutoff=None if recipe.filter.kind == "none" else recipe.filter.cutoff,
        spectra=tuple(spectra),
        difficulty=hard,
        threshold=loss.difficulty_threshold if judged and loss is not None else None,
    )


def _filter_in_words(filter: Filter) -> str:
    if filter.kind == "none":
        return "the recipe has no low-pass filter"
    order = f" of order {filter.order}" if filter.kind == "butterworth" else ""
    return f"{filter.kind} low-pass filter{order}, cut-off {filter.cutoff:g} cycles per image"


def _layers(
    run: RunFiles,
    recipe: Recipe,
    student: fx.GraphModule,
    floats: FloatNetwork | None,
    seen: Tensor,
    few: Tensor,
) -> Layers:
    if floats is None:
        return measure_layers(student, seen)
    plain = build_student(floats.graph, widths_of(student), recipe.quantization, floats.leaves)
    round_weights(plain, recipe.quantization)
    with torch.no_grad():
        costs = sensitivities(floats.graph, plain.eval(), few)
    return measure_layers(student, seen, floats.graph, costs, len(few))


def _maps(
    run: RunFiles,
    network: Teacher,
    student: fx.GraphModule,
    floats: FloatNetwork,
    images: Tensor,
    logits: tuple[Tensor, Tensor],
) -> Maps | None:
    if not floats.structure.maps:
        run.lacks(
            "class activation maps",
            "the network has no convolution with more than one output pixel, and no attention",
        )
        return None
    node = floats.structure.maps[-1]
    return compare_maps(floats.graph, student, node, images, network.denormalize(images), logits)


def _real_images(given: str | os.PathLike[str], runs: Sequence[RunFiles]) -> tuple[str, Tensor]:
    """A name and images (N, C, H, W) as the network takes them.

    Raises:
        DataError: they cannot be read.
        ArgumentError: no run says what images its network takes.
    """
    network = next((run.network for run in runs if run.network), None)
    if network is None:
        raise ArgumentError(
            "real images are shown as the network takes them, and no run here says how: leave out "
            "--images (images=)"
        )
    return real_images(given, network, _count(network.example().numel() // 2, 2**20, 24, 256))
