"""All work that a GPU records passes PyTorch's checks of a capture, here without a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from synq_fast.bank.batches import Batches, BatchSource
from synq_fast.bank.images import ImageBank
from synq_fast.bank.mixing import MixedBatches
from synq_fast.engine.student import build_student
from synq_fast.finetune.reconstruction import (
    Blocks,
    Cache,
    NetworkValues,
    Reconstruction,
    TrainedBlock,
    reconstruction_loop,
)
from synq_fast.finetune.step import Step
from synq_fast.finetune.training import Reduction, Training, training_loop
from synq_fast.graph.blocks import subnetwork
from synq_fast.graph.structure import find_structure
from synq_fast.graph.trace import trace
from synq_fast.quant import BitWidths, observing
from synq_fast.recipes import load_recipe
from synq_fast.runtime.replay import Replayed
from synq_fast.synthesis.losses import (
    Alignment,
    AttentionEntropy,
    Classes,
    Discrepancy,
    Patches,
    Roughness,
    SoftClasses,
)
from synq_fast.synthesis.settings import Centers, Refresh, Regions, Sparse, Synthesis
from synq_fast.synthesis.student import ImageStudent
from synq_fast.synthesis.synthesizer import Round, Synthesizer
from synq_fast.synthesis.teacher import ImageTeacher
from tests.tiny import (
    tiny_images,
    tiny_labels,
    tiny_pair,
    tiny_recipe,
    tiny_synthesizer,
)
from tests.transformers import tiny_vit

CALLS = 3


@contextmanager
def captured(monkeypatch: pytest.MonkeyPatch, capturing: bool) -> Iterator[None]:
    """PyTorch believes that a GPU is there and that a capture is, or is not, under way."""
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        yield


def synthesizer() -> Synthesizer:
    return tiny_synthesizer(Synthesis(batch_size=6, steps=4, centers=Centers(weight=1.0, steps=4)))


def iteration() -> Callable[[], object]:
    return synthesizer().optimization(0, 6)[0].advance


def step(reduce: Reduction | None = None, **choice: object) -> Callable[[], object]:
    recipe = tiny_recipe(**choice)
    teacher, student, points = tiny_pair(recipe)
    source: Batches = BatchSource(
        ImageBank(tiny_images(10), tiny_labels(10)),
        4,
        (0.5, 1.0),
        recipe.filter,
        0,
        variety=recipe.variety,
        valid=(torch.full((2, 1, 1), -2.0), torch.full((2, 1, 1), 2.0)),
    )
    if recipe.finetune.mixup:
        source = MixedBatches(source, 4, recipe.finetune.mixup, 0)
    own = Step(teacher, student, points, recipe.finetune)
    return training_loop(Training(own, student, source, recipe.finetune, reduce=reduce)).advance


def reconstruction() -> Callable[[], object]:
    recipe = tiny_recipe(quantization__weight_range="learned", quantization__learn_ranges=True)
    teacher, student, structure = tiny_pair(recipe)
    blocks, cut = Blocks(batch_size=4, global_weight=1.0), structure.blocks[0]
    cpu, images = torch.device("cpu"), tiny_images(8)
    cache = Cache("memory", cpu, None)
    values = NetworkValues(teacher, student, structure.blocks, lambda: images, cache, 4, ends=True)
    part = subnetwork(student, cut.entry, cut.exit)
    rest = subnetwork(teacher, cut.exit, structure.blocks[-1].entry)
    trained = TrainedBlock(part, "soft")
    work = Reconstruction(
        trained, lambda: values.of(0), blocks, seed=0, index=0, device=cpu, rest=rest
    )
    return reconstruction_loop(work).advance


def sparse_iteration() -> Callable[[], object]:
    teacher = tiny_vit()
    graph = trace(teacher.module.requires_grad_(False), teacher.example())
    recipe = Synthesis(
        batch_size=6,
        steps=CALLS,
        augment_probability=1.0,
        augment_roll=4,
        sparse=Sparse(share=0.3, milestones=(0.0,)),
    )
    maker = Synthesizer(
        ImageTeacher(graph, find_structure(graph, teacher.example()), sparse=True),
        replace(recipe, losses=(Classes(), Patches(), Roughness())),
        input_shape=teacher.input_shape,
        classes=teacher.num_classes,
        seed=0,
        device=torch.device("cpu"),
    )
    return maker.optimization(0, 6)[0].advance


def iteration_in_turn() -> Callable[[], object]:
    """Against a quantized network, with whatever losses draw in each step."""
    teacher = tiny_vit()
    graph = trace(teacher.module.requires_grad_(False), teacher.example())
    structure = find_structure(graph, teacher.example())
    quantization = load_recipe("maskaq").quantization
    student = build_student(graph, BitWidths(4, 4), quantization).eval()
    with torch.no_grad(), observing(student):
        student(torch.randn(4, *teacher.input_shape))
    recipe = Synthesis(
        batch_size=6,
        steps=CALLS,
        augment_probability=1.0,
        regions=Regions(most=2),
        refresh=Refresh(every=1, steps=CALLS),
        losses=(SoftClasses(), AttentionEntropy(), Alignment(), Discrepancy()),
    )
    maker = Synthesizer(
        ImageTeacher(graph, structure),
        recipe,
        input_shape=teacher.input_shape,
        classes=teacher.num_classes,
        seed=0,
        device=torch.device("cpu"),
        round_=Round(1, ImageStudent(student, structure)),
    )
    return maker.optimization(0, 6)[0].advance


WORK: dict[str, Callable[[], Callable[[], object]]] = {
    "synthesis": iteration,
    "synthesis of some patches": sparse_iteration,
    "synthesis in turn with the model": iteration_in_turn,
    "centers": lambda: synthesizer().make_centers,
    "step": step,
    "step with learned ranges": lambda: step(
        quantization__learn_ranges=True, finetune__max_gradient_norm=1.0
    ),
    "step with Adam": lambda: step(quantization__learn_ranges=True, finetune__optimizer="adam"),
    "step with pseudo labels": lambda: step(
        finetune__pseudo_labels__unreliable_weight=0.5, finetune__feature_distance__weight=1.0
    ),
    "step on mixed images": lambda: step(
        finetune__mixup=1.0,
        finetune__distillation__label_weight=0.0,
        finetune__disagreement__temperature=5.0,
    ),
    "reconstruction": reconstruction,
    "step on images in many looks": lambda: step(variety__softest=2.0, variety__contrast=0.3),
    "step in bf16": lambda: step(finetune__precision="bf16"),
    "step of one process of several": lambda: step(reduce=lambda terms: terms),
}


@pytest.mark.parametrize("capturing", [True, False], ids=["recording", "warming up"])
@pytest.mark.parametrize("name", WORK)
def test_passes_the_checks_of_a_capture(name, capturing, monkeypatch):
    work = WORK[name]()
    with captured(monkeypatch, capturing):
        for _ in range(CALLS):
            work()


def test_the_checks_do_refuse(monkeypatch):
    x = torch.ones(2, requires_grad=True)
    x.grad = torch.ones(2)
    refused = torch.optim.Adam([x], fused=True)
    with captured(monkeypatch, True), pytest.raises(RuntimeError, match="capturable is False"):
        refused.step()


def test_every_replayed_work_is_in_the_table(monkeypatch):
    """What is wrapped for recording is one of the functions that the table above reaches."""
    made = set()
    init = Replayed.__init__

    def noted(self, work, *arguments, **options):
        made.add(type(work).__qualname__)
        init(self, work, *arguments, **options)

    monkeypatch.setattr(Replayed, "__init__", noted)
    for make in WORK.values():
        make()()
    assert made == {"ImageOptimization", "Reconstruction", "Training"}


def test_synthesis_of_the_same_images_as_before():
    """The switch for captures changes no bit of an Adam step."""
    start, gradients = tiny_images(4), [tiny_images(4, seed) for seed in range(5, 9)]
    found = []
    for options in ({"capturable": True}, {}):
        x = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([x], torch.tensor(0.1), fused=True, **options)
        for gradient in gradients:
            x.grad = gradient.clone()
            optimizer.step()
        found.append(x.detach())
    assert torch.equal(*found)
