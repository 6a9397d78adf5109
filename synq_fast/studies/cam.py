"""How alike class activation maps of the float and the quantized network are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, fx

from synq_fast.bank.batches import filtered
from synq_fast.bank.images import spread as evenly
from synq_fast.errors import ModelError, RecipeError
from synq_fast.fields import count, factor, items
from synq_fast.finetune.losses import Cam as CamLoss
from synq_fast.graph.norm_folding import folded_like
from synq_fast.graph.structure import Structure
from synq_fast.quant import held_weights
from synq_fast.reporting.figures.chart import Chart, Series
from synq_fast.reporting.maps import MAP_KINDS, class_maps, cosine
from synq_fast.reporting.study_page import StudySection
from synq_fast.reporting.tables import Column, Table, text
from synq_fast.reporting.tables import number as cell
from synq_fast.studies.study import Part, spread
from synq_fast.studies.workbench import Workbench, logits_of

CALIBRATED, WITHOUT, WITH = "calibrated", "trained without", "trained with"
STUDENTS = (CALIBRATED, WITHOUT, WITH)
SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class CamRow:
    """Maps of one kind at one layer, of the float network and of one quantized one."""

    seed: int
    student: str
    """``calibrated``, or trained with or without the alignment of maps."""
    images: str
    """``synthetic``, or what the real ones are called."""
    layer: str
    """The node whose activations make the map."""
    kind: str
    """``grad_cam`` or ``grad_cam_plus_plus``."""
    mean: float | None
    """Of the cosine of both maps, over the images that have both; None where none has."""
    low: float | None
    """Lower quartile."""
    median: float | None
    high: float | None
    flat: int
    """Images of which a map is zero everywhere, and which are left out."""
    count: int
    """Images."""
    top1: float | None
    """Of the quantized network in percent, where labelled images are given."""


@dataclass(frozen=True)
class Cam:
    """Maps for the class that the float network names, before and after training."""

    name: ClassVar[str] = "cam"
    question: ClassVar[str] = (
        "Does the alignment of class activation maps make the quantized network look where the "
        "float one looks?"
    )
    row: ClassVar[type[Any]] = CamRow
    needs: ClassVar[str] = ""

    steps: int = count(150, "of the training")
    weight: float = factor(0.0, "of the alignment where it is on; 0: the recipe's")
    images: int = count(256, "whose maps are compared, of each set")
    layers: int = count(3, "at which maps are read, the last with those of the recipe's loss")
    kinds: tuple[str, ...] = items(MAP_KINDS, "of maps", options=MAP_KINDS)

    def parts(self, bench: Workbench) -> Iterator[Part]:
        """Each seed: calibrated, trained without and trained with the alignment."""
        loss = bench.recipe.finetune.loss(CamLoss)
        weight = self.weight or (0.0 if loss is None else loss.weight)
        if "finetune" not in bench.recipe.stages or not weight:
            raise RecipeError(
                f"recipe {bench.recipe.name} does not align maps in training; take SynQ's, such as "
                f"synq-cifar, or give a weight (option weight)"
            )
        for seed in bench.seeds:
            for student in STUDENTS:
                key = f"{student}, seed {seed}"
                yield Part(key, partial(self._compared, bench, student, seed))

    def _compared(self, bench: Workbench, student: str, seed: int) -> list[CamRow]:
        values: dict[str, Any] = {"finetune.steps": self.steps}
        if student != WITH:
            values["finetune.cam.weight"] = 0.0
        elif self.weight:
            values["finetune.cam.weight"] = self.weight
        run = bench.run(seed, bench.varied(values))
        network = None
        for stage, made in bench.stages(run, bench.source(seed)):
            network = made
            if student == CALIBRATED and stage == "calibration":
                break
        assert network is not None
        network.requires_grad_(False)
        layers = layers_of(run.structure, self.layers)
        top1 = None if bench.data is None else bench.top1(network)
        rows = []
        for name, images in self._sets(bench, seed):
            classes = logits_of(run.graph, images).argmax(1)
            for layer in layers:
                for kind in self.kinds:
                    found = _alike(run.graph, network, layer, images, classes, kind)
                    rows.append(_row(seed, student, name, layer, kind, found, top1))
        return rows

    def _sets(self, bench: Workbench, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Synthetic images that the network was not trained on, and real ones."""
        # Those of the next seed; a single seed has none but its own.
        others = bench.seeds[(bench.seeds.index(seed) + 1) % len(bench.seeds)]
        images, _ = bench.source(others).sample(self.images)
        yield SYNTHETIC, filtered(images, bench.recipe.filter)
        if bench.data is not None:
            chosen = evenly(len(bench.data), self.images).tolist()
            pixels = bench.teacher.normalize(bench.data.pixels(chosen)).to(bench.device)
            yield bench.data.name, pixels

    def findings(self, rows: Sequence[CamRow]) -> list[str]:
        """Every layer and kind on every set; accuracies."""
        said = []
        for images, layer, kind in dict.fromkeys((r.images, r.layer, r.kind) for r in rows):
            values = [
                f"{_mean(rows, student, images, layer, kind):.3f} {student}" for student in STUDENTS
            ]
            gain = spread(_gains(rows, images, layer, kind))
            more = f" ± {gain.high - gain.mean:.3f} over the seeds" if gain.values > 1 else ""
            said.append(
                f"{kind} at {layer}, {images} images: mean cosine {', '.join(values)}; the "
                f"alignment's own part {gain.mean:+.3f}{more}."
            )
        top1 = [
            f"{found} {student}"
            for student in STUDENTS
            if (found := spread({r.seed: r.top1 for r in rows if r.student == student}.values()))
            and found.values
        ]
        if top1:
            said.append(f"Top-1 in percent: {', '.join(top1)}.")
        return said

    def sections(self, rows: Sequence[CamRow], bench: Workbench) -> list[StudySection]:
        """A chart for each set of images and kind of map, and everything in a table."""
        charts = []
        for images, kind in dict.fromkeys((row.images, row.kind) for row in rows):
            own = [row for row in rows if row.images == images and row.kind == kind]
            layers = list(dict.fromkeys(row.layer for row in own))
            series = []
            for student in STUDENTS:
                found = [
                    spread(r.mean for r in own if r.student == student and r.layer == layer)
                    for layer in layers
                ]
                series.append(
                    Series(
                        student,
                        [each.mean for each in found],
                        list(range(len(layers))),
                        [each.low for each in found],
                        [each.high for each in found],
                    )
                )
            label = f"Mean cosine of {kind} maps on {images} images, at {len(layers)} layers"
            title = f"{kind}, {images}"
            charts.append(Chart(title, label, "mean cosine", "", series, layers))
        where = "of another seed" if len(bench.seeds) > 1 else "that the network was trained on"
        said = (
            f"Cosine of the float and the quantized network's maps for the class that the float "
            f"one names: mean over {self.images} images, then mean and standard deviation over the "
            f"seeds. Networks are calibrated, then trained for {self.steps} steps by the recipe, "
            f"with and without its loss on the maps, which reads the last of these layers. "
            f"Synthetic images are those {where}."
        )
        return [StudySection("Similarity", said, charts, _table(rows))]


def layers_of(structure: Structure, wanted: int) -> list[str]:
    """Where maps are read: outputs of residual bodies, evenly, and the layer of the loss.

    Raises:
        ModelError: the network has no maps.
    """
    if not structure.maps:
        raise ModelError(
            "this network has no convolution with more than one output pixel and no attention, so "
            "there are no class activation maps"
        )
    last = structure.maps[-1]
    # The last body is what becomes of that layer's output.
    earlier = [name for name in structure.bodies[:-1] if name != last]
    return [*(earlier[place] for place in evenly(len(earlier), wanted - 1).tolist()), last]


def _alike(
    teacher: fx.GraphModule,
    student: fx.GraphModule,
    layer: str,
    images: Tensor,
    classes: Tensor,
    kind: str,
) -> Tensor:
    """Cosine (N,) of both networks' maps; NaN where one is flat."""
    theirs = class_maps(folded_like(teacher, student), layer, images, classes, kind)
    with held_weights(student):
        ours = class_maps(student, layer, images, classes, kind)
    return cosine(theirs, ours)


def _row(
    seed: int, student: str, images: str, layer: str, kind: str, found: Tensor, top1: float | None
) -> CamRow:
    seen = found[~found.isnan()].double()
    flat = len(found) - len(seen)
    mean = low = median = high = None
    if len(seen):
        mean = float(seen.mean())
        low, median, high = seen.quantile(seen.new_tensor([0.25, 0.5, 0.75])).tolist()
    return CamRow(
        seed, student, images, layer, kind, mean, low, median, high, flat, len(found), top1
    )


def _gains(rows: Sequence[CamRow], images: str, layer: str, kind: str) -> list[float]:
    """What the alignment adds to the mean cosine, of each seed."""
    found = {
        (r.seed, r.student): r.mean
        for r in rows
        if (r.images, r.layer, r.kind) == (images, layer, kind) and r.mean is not None
    }
    seeds = dict.fromkeys(seed for seed, _ in found)
    pairs = [(found.get((seed, WITH)), found.get((seed, WITHOUT))) for seed in seeds]
    return [a - b for a, b in pairs if a is not None and b is not None]


def _mean(rows: Sequence[CamRow], student: str, images: str, layer: str, kind: str) -> float:
    wanted = (student, images, layer, kind)
    return spread(r.mean for r in rows if (r.student, r.images, r.layer, r.kind) == wanted).mean


def _table(rows: Sequence[CamRow]) -> Table:
    columns = (
        Column("network", numeric=False),
        Column("seed"),
        Column("images", numeric=False),
        Column("layer", numeric=False),
        Column("map", numeric=False),
        Column("mean cosine"),
        Column("lower quartile"),
        Column("median"),
        Column("upper quartile"),
        Column("flat", note="images left out: a map that is zero everywhere"),
        Column("top-1, %"),
    )
    lines = [
        (
            text(row.student),
            cell(row.seed),
            text(row.images),
            text(row.layer),
            text(row.kind),
            *(cell(value, "{:.4f}") for value in (row.mean, row.low, row.median, row.high)),
            cell(row.flat),
            cell(row.top1, "{:.2f}"),
        )
        for row in rows
    ]
    return Table("Similarity", columns, lines)
