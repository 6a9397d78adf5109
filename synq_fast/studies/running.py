"""The one function: a study by its name, part by part."""

from __future__ import annotations

import difflib
import importlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from synq_fast.arguments import whole_number
from synq_fast.data import EvaluationSet, load_dataset
from synq_fast.engine.asked_for import asked_for
from synq_fast.engine.identity import evaluation_hash, fingerprint, tensors_hash
from synq_fast.engine.real_images import real_images
from synq_fast.errors import ArgumentError, DataError
from synq_fast.models import Teacher, load_teacher
from synq_fast.ops import _installation
from synq_fast.quant import BitWidths
from synq_fast.quant.bits import Bits, parse_bits
from synq_fast.recipes import Recipe, dump_recipe, load_recipe, read_section
from synq_fast.reporting.page import check_available
from synq_fast.reporting.study_page import StudyPage
from synq_fast.runtime.devices import chosen_device
from synq_fast.runtime.progress import Reporter, duration
from synq_fast.runtime.threads import limit_threads
from synq_fast.storage.paths import user_path
from synq_fast.storage.results_file import read_results
from synq_fast.studies import STUDIES
from synq_fast.studies.result import GROUPS, FinishedPart, StudyResult, write_parts
from synq_fast.studies.study import Study
from synq_fast.studies.workbench import Workbench

_PICTURES = 512
"""Real images that are looked at."""
_SYNQ = {
    "synq-fast-digits": "synq-digits",
    "synq-fast-cifar": "synq-cifar",
    "synq-fast-imagenet": "synq-imagenet",
    "synq-fast-imagenet-8bit": "synq-imagenet",
}
"""SynQ's own recipe for networks to which another one suits better."""


@torch.inference_mode(False)
def study(
    name: str,
    teacher: str | nn.Module | Teacher,
    recipe: str | Path | Recipe | None = None,
    bits: str | Bits = "w4a4",
    seeds: Sequence[int] = (0, 1, 2),
    data: str | Path | EvaluationSet | None = None,
    output: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    input_shape: tuple[int, int, int] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> StudyResult:
    """Answer one question about a method on one network.

    ``overhead``: what the filter, the alignment of class activation maps and the soft labels for
    difficult samples add in time. ``noise``: what noise on the synthetic images costs, with and
    without the filter. ``cam``: how alike the maps of the float and the quantized network are,
    trained with and without their alignment. ``labels``: how the difficulty of samples and the
    float network's errors go together. ``spectra``: what the filter does to the spectra of
    synthetic images, beside those of real ones.

    With ``output`` a killed study, called again, goes on where it was, and images are shared with
    other studies and with ``compare`` in the same folder.

    Args:
        name: of the study.
        teacher: as ``quantize`` takes it.
        recipe: name, path or recipe; by default SynQ's for the size of the network's images.
        bits: widths of the quantized network.
        seeds: of images and training; what has none of its own to choose takes the first.
        data: images to measure on: labelled ones for ``noise``, also a plain folder of pictures
            for ``spectra``; ``cam`` and ``labels`` also look at them where they are given. They
            decide nothing.
        output: folder of results: NAME.json, .md, .png and .html in one folder per network;
            without it nothing is written.
        overrides: recipe values by dotted key.
        options: the study's own values, e.g. ``{"steps": 100}``; unknown ones are named beside
            those that there are.
        input_shape: (C, H, W) of an image; known for named teachers.
        device: where to work; by default a GPU where there is one.
        progress: say on standard error what is being done.

    Raises:
        ArgumentError: no study of that name, no seeds, widths to be found for an average, or
            matplotlib or Jinja2 are not installed (extra ``report``).
        DataError: the study needs data and none is given, or the results are damaged.
        RecipeError: the recipe, or one of the options, cannot be meant.
        SynqFastError: as ``quantize``.
    """
    chosen = _study(name, options or {})
    widths = parse_bits(bits)
    if not isinstance(widths, BitWidths):
        raise ArgumentError(f"a study compares networks of fixed widths, such as w4a4, not {bits}")
    if isinstance(seeds, str | int) or not seeds:
        raise ArgumentError(f"seeds must be a list of at least one, got {seeds!r}")
    if output is not None:
        check_available()
    if chosen.needs and data is None:
        raise DataError(
            f"the study {name} needs {_NEEDED[chosen.needs]}: name them with data or --data"
        )
    limit_threads()
    loaded = load_teacher(teacher, input_shape=input_shape)
    bench = Workbench(
        loaded,
        _recipe(loaded, recipe, overrides),
        widths,
        tuple(whole_number("seed", seed) for seed in seeds),
        chosen_device(device),
        folder=None if output is None else user_path(output) / loaded.name.replace("/", "-"),
        progress=progress,
    )
    identity = _with_data(bench, chosen, data)
    return _done(bench, chosen, identity, Reporter(progress))


_NEEDED = {
    "labels": "labelled images, on which accuracy is counted",
    "pictures": "real images, beside whose spectrum that of the synthetic ones is shown (a folder "
    "of pictures will do)",
}


def _study(name: str, options: Mapping[str, Any]) -> Study:
    if name not in STUDIES:
        close = difflib.get_close_matches(name, STUDIES, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ArgumentError(f"no study {name!r}{hint} (there are {', '.join(STUDIES)})")
    module = importlib.import_module(f"synq_fast.studies.{name}")
    kind: type[Any] = getattr(module, STUDIES[name])
    return cast(Study, read_section(kind, options, name, "options"))


def _recipe(
    teacher: Teacher, recipe: str | Path | Recipe | None, overrides: Mapping[str, Any] | None
) -> Recipe:
    if recipe is not None:
        return load_recipe(recipe, overrides)
    _, suited, _ = asked_for(teacher, None, None, None)
    if suited.name not in _SYNQ:
        raise ArgumentError(
            f"there is no recipe of SynQ's for {teacher.name} that could be taken by itself; name "
            f"one with recipe or --recipe (synq-fast recipes lists them)"
        )
    return load_recipe(_SYNQ[suited.name], overrides)


def _with_data(bench: Workbench, study: Study, data: str | Path | EvaluationSet | None) -> str:
    """Give the workbench its data; returns a hash of weights and data."""
    teacher = bench.teacher
    if data is None:
        return tensors_hash(teacher.module.state_dict())
    if study.needs == "pictures":
        bench.pictures = real_images(data, teacher, _PICTURES)
        return tensors_hash(teacher.module.state_dict(), (bench.pictures[1],))
    labelled = data if isinstance(data, EvaluationSet) else load_dataset(data, teacher)
    bench.data = labelled
    return evaluation_hash(teacher, labelled)


def _done(bench: Workbench, study: Study, identity: str, reporter: Reporter) -> StudyResult:
    """Do the parts that are missing, and put all of them together."""
    path = None if bench.folder is None else bench.folder / f"{study.name}.json"
    kept: dict[str, FinishedPart] = {}
    if path is not None:
        for group in GROUPS:
            kept |= read_results(path, group, FinishedPart)
    info = _installation.report()
    setting = _setting(bench, study)
    about = {
        "study": study.name,
        "question": study.question,
        "network": bench.teacher.name,
        "setting": setting,
        "machine": info.system,
        "versions": {n: v for n, v in info.versions.items() if v is not None},
    }
    parts = list(study.parts(bench))
    done: list[FinishedPart] = []
    options = asdict(cast(Any, study))
    for number, part in enumerate(parts, 1):
        read = options if part.reads is None else {name: options[name] for name in part.reads}
        depends = {
            "weights and data": identity,
            "recipe": dump_recipe(bench.recipe),
            "bits": str(bench.bits),
            "device": str(bench.device),
            "options": json.dumps(read),
            "part": part.key,
        }
        mark = fingerprint(depends)
        if mark not in kept:
            started = time.perf_counter()
            made = [asdict(row) for row in part.make()]
            took = time.perf_counter() - started
            kept[mark] = FinishedPart(part.key, mark, round(took, 2), made)
            reporter.line(f"{study.name} {number} of {len(parts)}, {part.key}: {duration(took)}")
            if path is not None:
                write_parts(path, about, [*done, kept[mark]], kept)
        done.append(kept[mark])
    if path is not None:
        write_parts(path, about, done, kept)
    rows = tuple(study.row(**row) for part in done for row in part.rows)
    sections = study.sections(rows, bench)
    findings = tuple(study.findings(rows))
    page = StudyPage(
        study.name,
        study.question,
        bench.teacher.name,
        findings,
        sections,
        setting,
        dump_recipe(bench.recipe),
        info.system,
        {n: v for n, v in info.versions.items() if v is not None},
    )
    charts = tuple(chart for each in sections for chart in each.charts)
    result = StudyResult(
        study.name, study.question, bench.teacher.name, setting, findings, rows, page, charts
    )
    return result if bench.folder is None else replace(result, page_path=result.write(bench.folder))


def _setting(bench: Workbench, study: Study) -> dict[str, str]:
    found = {
        "network": bench.teacher.name,
        "recipe": bench.recipe.name,
        "bits": str(bench.bits),
        "seeds": ", ".join(map(str, bench.seeds)),
        "device": str(bench.device),
        "threads": str(torch.get_num_threads()),
        "synthetic images": f"{bench.recipe.synthesis.images} per seed, "
        f"{bench.recipe.synthesis.steps} steps",
    }
    if bench.data is not None:
        found["labelled images"] = f"{bench.data.name} ({len(bench.data)})"
    if bench.pictures is not None:
        found["real images"] = f"{bench.pictures[0]} ({len(bench.pictures[1])})"
    for option in fields(cast(Any, study)):
        value = getattr(study, option.name)
        found[option.name] = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return found
