"""Training block by block: rounding, the form of a block, its loop."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from synq_fast.engine.student import build_student
from synq_fast.finetune.reconstruction import (
    Blocks,
    BlockValues,
    Cache,
    NetworkValues,
    Reconstruction,
    TrainedBlock,
    reconstruction_loop,
)
from synq_fast.finetune.reconstruction.rounding import SoftRounding
from synq_fast.graph.blocks import Block, subnetwork
from synq_fast.quant import (
    BitWidths,
    find_structure,
    folded,
    held_weights,
    observing,
    trace,
)
from synq_fast.quant.layers import WeightQuantized
from synq_fast.quant.quantizer import Grid
from tests.tiny import SHAPE, tiny_images, tiny_pair, tiny_recipe

LEARNED = {"quantization__weight_range": "learned", "quantization__learn_ranges": True}
CPU = torch.device("cpu")


def pair(bits: BitWidths | None = None):
    return tiny_pair(tiny_recipe(**LEARNED), bits or BitWidths(3, 4))


def layers_of(module) -> list[WeightQuantized]:
    return [m for m in module.modules() if isinstance(m, WeightQuantized)]


def codes(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    shape = (-1, *(1 for _ in weight.shape[1:]))
    return weight * grid.scale.view(shape) - grid.zero_point.view(shape)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_soft_rounding_starts_at_the_float_weight_within_the_range(bits):
    _, student, _ = pair(BitWidths(bits, 4))
    for layer in layers_of(student):
        grid = layer.grid()
        rounding = SoftRounding(layer, torch.tensor(2.0))
        places = codes(layer.weight.detach(), grid)
        found = codes(rounding().detach(), grid)
        torch.testing.assert_close(found, places.clamp(grid.low, grid.high), atol=2e-3, rtol=0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_hardened_weights_are_values_of_the_grid_next_to_the_soft_ones(bits):
    _, student, _ = pair(BitWidths(bits, 4))
    for layer in layers_of(student):
        rounding = SoftRounding(layer, torch.tensor(2.0))
        with torch.no_grad():
            rounding.v += torch.randn(rounding.v.shape, generator=torch.Generator().manual_seed(1))
            layer.gain *= 1.25
        soft = rounding().detach()
        rounding.harden()
        grid = layer.grid()
        hard = codes(layer.weight.detach(), grid)
        assert (hard - hard.round()).abs().max() < 1e-3
        assert (hard - codes(soft, grid)).abs().max() <= 0.5 + 1e-3
        # What the layer computes with from now on are these very values.
        torch.testing.assert_close(layer.derive(), layer.weight, atol=1e-6, rtol=1e-6)


def test_gradients_reach_choices_and_ranges():
    _, student, structure = pair()
    cut = structure.blocks[1]
    block = TrainedBlock(subnetwork(student, cut.entry, cut.exit), "soft")
    x = torch.rand(4, 6, 8, 8)
    seeds = torch.arange(len(block.quantizers))
    y, undecided = block(x, 1.0, seeds.unbind())
    (y.square().sum() + undecided).backward()
    trained = [*block.choices, *block.weight_gains, *block.gains]
    assert len(trained) == 1 + 1 + 1
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert block.layers[0].weight.grad is None


def test_joined_block_computes_what_the_student_does():
    _, student, structure = pair()
    x = tiny_images(4)
    for cut in structure.blocks:
        part = subnetwork(student, cut.entry, cut.exit)
        with torch.no_grad():
            expected = part(x)
            found, undecided = TrainedBlock(part, "straight")(
                x, 1.0, [torch.tensor(0)] * _quantizers(part)
            )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert undecided == 0
        x = expected


def _quantizers(part) -> int:
    from synq_fast.quant import ActivationQuantizer

    return sum(isinstance(m, ActivationQuantizer) for m in part.modules())


def work_on(student, structure, index: int, recipe: Blocks, images: torch.Tensor, teacher):
    cut = structure.blocks[index]
    trained = TrainedBlock(subnetwork(student, cut.entry, cut.exit), recipe.rounding)
    values = NetworkValues(
        teacher,
        student,
        structure.blocks,
        lambda: images,
        Cache("memory", CPU, None),
        8,
        ends=recipe.global_weight > 0,
    )
    last = structure.blocks[-1].entry
    far = recipe.global_weight > 0 and last not in (cut.entry, cut.exit)
    return Reconstruction(
        trained,
        lambda: values.of(index),
        recipe,
        seed=0,
        index=index,
        device=CPU,
        rest=subnetwork(teacher, cut.exit, last) if far else None,
    )


def teacher_of(graph, structure):
    return folded(graph, {name for b in structure.blocks for name in (b.entry, b.exit)})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rounding": "straight", "weight_learning_rate": 3e-3},
        {"global_weight": 1.0},
        {"keep": 1.0, "mix": 1.0},
        {"mix": 0.0},
    ],
    ids=str,
)
def test_a_block_comes_closer_to_the_float_one(options):
    graph, student, structure = pair(BitWidths(2, 4))
    recipe = Blocks(
        steps=200, batch_size=8, rounding_learning_rate=1e-2, rounding_weight=1e-3, **options
    )
    work = work_on(student, structure, 1, recipe, tiny_images(16), teacher_of(graph, structure))
    before = _distance(student, structure.blocks[1], work.values())
    reconstruction_loop(work).run()
    work.block.harden()
    assert _distance(student, structure.blocks[1], work.values()) < 0.97 * before


@torch.no_grad()
def _distance(student, cut: Block, values: BlockValues) -> float:
    part = subnetwork(student, cut.entry, cut.exit)
    with held_weights(part):
        return (part(values.inputs) - values.targets).square().mean().item()


class Biased(nn.Module):
    """A block that also has a layer of a parameter, which is the same for all images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(SHAPE[0], 6, 3, padding=1)
        self.table = nn.Parameter(torch.randn(1, 7))
        self.bias = nn.Linear(7, 6)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.conv(x) + self.bias(self.table)[:, :, None, None])
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("rounding", ["soft", "straight"])
def test_gradients_of_parts_are_those_of_the_batch(rounding):
    """Whatever is left to chance; parts of 1, 2 and 2 images of 5."""
    graph = trace(Biased().eval(), tiny_images(2))
    quantization = tiny_recipe(**LEARNED, quantization__placement="all_inputs").quantization
    student = build_student(graph, BitWidths(3, 4), quantization).eval()
    with torch.no_grad(), observing(student):
        student(tiny_images(8, seed=99))
    structure = find_structure(graph, tiny_images(2))
    first, *_, last = structure.blocks
    middle = Block(first.exit, last.entry)
    structure = dataclasses.replace(structure, blocks=(first, middle, last))
    recipe = Blocks(steps=9, batch_size=5, rounding=rounding, rounding_weight=0.0)

    def gradients(part: slice) -> list[torch.Tensor]:
        work = work_on(copy.deepcopy(student), structure, 1, recipe, tiny_images(12), graph)
        work.part = part
        work(*work.prepare(3))
        return [p.grad.clone() for p in work.parameters]

    whole = gradients(slice(0, 5))
    parts = [gradients(slice(*ends)) for ends in ((0, 1), (1, 3), (3, 5))]
    assert len(whole) == 2 + 2 + 2
    for expected, *found in zip(whole, *parts, strict=True):
        assert expected.norm() > 0
        mean = sum(share * g for share, g in zip((0.2, 0.4, 0.4), found, strict=True))
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


def test_values_follow_both_networks():
    graph, student, structure = pair()
    teacher, images = teacher_of(graph, structure), tiny_images(12)
    values = NetworkValues(
        teacher, student, structure.blocks, lambda: images, Cache("memory", CPU, None), 5, ends=True
    )
    last = structure.blocks[-1]
    with torch.no_grad():
        for index, cut in enumerate(structure.blocks):
            held = values.of(index)
            before = [
                subnetwork(network, structure.blocks[0].entry, cut.entry)(images)
                if index
                else images
                for network in (student, graph)
            ]
            torch.testing.assert_close(held.inputs, before[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(held.floats, before[1], atol=1e-5, rtol=1e-5)
            expected = subnetwork(graph, cut.entry, cut.exit)(before[1])
            torch.testing.assert_close(held.targets, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(held.ends, held.floats)
    assert last.entry == structure.blocks[-2].exit


def test_values_in_files_are_those_in_memory(tmp_path):
    graph, student, structure = pair()
    teacher = teacher_of(graph, structure)
    made = []
    for cache in (Cache("memory", CPU, None), Cache("files", CPU, tmp_path / "values")):
        values = NetworkValues(
            teacher, student, structure.blocks, lambda: tiny_images(12), cache, 5, ends=False
        )
        values.of(0)
        made.append(values.of(2))
    for one, other in zip(*(v.take(torch.tensor([3, 0, 11]), CPU) for v in made), strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()
    assert not (tmp_path / "values").exists()


def test_interrupted_training_of_a_block_goes_on_bit_for_bit(tmp_path):
    from synq_fast.storage.checkpoint_file import CheckpointFile

    recipe = Blocks(steps=9, batch_size=4)

    def fresh(name: str):
        graph, student, structure = pair()
        work = work_on(student, structure, 1, recipe, tiny_images(10), teacher_of(graph, structure))
        return (
            student,
            work,
            reconstruction_loop(work, checkpoint=CheckpointFile(tmp_path / name, 0)),
        )

    student, work, loop = fresh("a.safetensors")
    loop.run()
    work.block.harden()
    other, work, loop = fresh("b.safetensors")
    for _ in range(4):
        loop.advance()
    loop.save()
    other, work, loop = fresh("b.safetensors")
    assert loop.resume() and loop.done == 4
    loop.run()
    work.block.harden()
    for name, value in student.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_penalty_begins_late_and_its_exponent_falls():
    graph, student, structure = pair()
    recipe = Blocks(steps=10, batch_size=4, rounding_start=0.5, rounding_exponents=(8.0, 2.0))
    work = work_on(student, structure, 0, recipe, tiny_images(8), teacher_of(graph, structure))
    seen = []
    for step in range(10):
        work.prepare(step)
        seen.append((work.penalized.item(), work.block.exponent.item()))
    assert [weight for weight, _ in seen] == [0.0] * 5 + [1.0] * 5
    exponents = [exponent for _, exponent in seen[5:]]
    assert exponents[0] == 8.0 and exponents == sorted(exponents, reverse=True)
    assert exponents[-1] == pytest.approx(8 - 6 * 0.8)
