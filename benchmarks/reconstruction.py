"""A block of ResNet-18 that the engine trains, and its twin in plain eager PyTorch."""

from __future__ import annotations

import copy
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from synq_fast.engine.student import build_student
from synq_fast.finetune.reconstruction import (
    Blocks,
    Cache,
    NetworkValues,
    Reconstruction,
    TrainedBlock,
    reconstruction_loop,
)
from synq_fast.graph import called_module, trace
from synq_fast.graph.blocks import Block, subnetwork
from synq_fast.optimize.loop import Loop
from synq_fast.quant import (
    ActivationQuantizer,
    BitWidths,
    find_structure,
    folded,
    held_weights,
    observing,
)
from synq_fast.quant.layers import QuantizedConv2d, lsq_scale
from synq_fast.quant.quantizer import Grid, grid_of
from synq_fast.quant.settings import Quantization
from synq_fast.reference._philox import kept
from synq_fast.runtime.memory_format import channels_last

from . import harness
from .baselines.plain_reconstruction import (
    Draw,
    PlainGrid,
    PlainLayer,
    PlainReconstruction,
)
from .cases import ACTIVATION_BITS, WEIGHT_BITS, Case

EAGER_LAYOUTS = ("contiguous", "channels_last")
BATCH, IMAGES = 32, 64
RESNET18 = Case("resnet18", IMAGES)
_Module = TypeVar("_Module", bound=nn.Module)


def recipe_of(rounding: str, batch_size: int = BATCH) -> Blocks:
    """A recipe whose rates move nothing, so that all rounds are of equal work."""
    still = 1e-12
    return Blocks(
        images=IMAGES,
        steps=10**9,
        batch_size=batch_size,
        rounding=rounding,
        # So that the distance of the values decides gradients too.
        rounding_weight=1e-4,
        rounding_start=0.0,
        rounding_learning_rate=still,
        weight_learning_rate=still,
        weight_range_learning_rate=still,
        range_learning_rate=still,
    )


@cache
def _networks(case: Case) -> tuple[NetworkValues, nn.Module, Block]:
    """Values between the blocks of a network; its student, and a residual block without pooling."""
    teacher = case.teacher()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(case.batch, *teacher.input_shape, generator=generator).to(harness.DEVICE)
    images = images.contiguous(memory_format=torch.channels_last)
    graph = trace(channels_last(copy.deepcopy(teacher.module)), teacher.example())
    blocks = find_structure(graph, images[:2]).blocks
    student = build_student(
        graph,
        BitWidths(WEIGHT_BITS, ACTIVATION_BITS),
        Quantization(range="minmax", weight_range="learned", learn_ranges=True),
    ).eval()
    with torch.no_grad(), observing(student), held_weights(student):
        student(images[:8])
    values = NetworkValues(
        folded(graph, {name for block in blocks for name in (block.entry, block.exit)}),
        student,
        blocks,
        lambda: images,
        Cache("memory", harness.DEVICE, None),
        BATCH,
        ends=False,
    )
    return values, student, blocks[2]


def both_sides(
    rounding: str, case: Case = RESNET18, batch_size: int = BATCH
) -> tuple[Loop, dict[str, PlainReconstruction]]:
    """The engine's loop, and its twin in each layout, from the same start.

    Args:
        rounding: as recipes say.
        case: the network, and how many images there are.
        batch_size: images of a step.
    """
    values, student, cut = _networks(case)
    part = subnetwork(copy.deepcopy(student), cut.entry, cut.exit)
    work = Reconstruction(
        TrainedBlock(part, rounding),
        lambda: values.of(2),
        recipe_of(rounding, batch_size),
        seed=0,
        index=2,
        device=harness.DEVICE,
    )
    sides = {layout: _twin(work, part, layout) for layout in EAGER_LAYOUTS}
    return reconstruction_loop(work), sides


def difference(work: Reconstruction, twin: PlainReconstruction) -> float:
    """How far the twin's gradients are from the engine's where both draw the same.

    Returns:
        The largest distance of a parameter's gradients, as a part of their norm.
    """
    *values, seeds = work.prepare(0)
    own, *others = seeds.unbind()
    of_quantizer = dict(zip(work.block.quantizers, others, strict=True))
    drawn = (own, *(of_quantizer[q] for q in _called(work.block.network, ActivationQuantizer)))
    layout = twin.memory_format
    before, twin.draws = twin.draws, [_as_ours(seed) for seed in drawn]
    twin.step(*(v.contiguous(memory_format=layout) for v in values))
    twin.draws = before
    work(*values, seeds)
    worst = 0.0
    for one, other in zip(work.parameters, twin.parameters, strict=True):
        assert one.grad is not None and other.grad is not None
        worst = max(worst, ((one.grad - other.grad).norm() / one.grad.norm()).item())
    return worst


def _as_ours(seed: Tensor) -> Draw:
    """What the engine draws, which follows its memory."""

    def draw(x: Tensor, keep: float) -> Tensor:
        return kept(x.detach().contiguous(memory_format=torch.channels_last), seed, keep)

    return draw


def _called(part: nn.Module, kind: type[_Module]) -> list[_Module]:
    """The modules of a kind in the order of their calls."""
    assert isinstance(part, fx.GraphModule)
    called = (called_module(part, node) for node in part.graph.nodes)
    return [m for m in called if isinstance(m, kind)]


def _twin(work: Reconstruction, part: fx.GraphModule, layout: str) -> PlainReconstruction:
    block, recipe, memory = work.block, work.recipe, harness.MEMORY_FORMATS[layout]
    exponent = torch.tensor(recipe.rounding_exponents[0], device=harness.DEVICE)
    roundings = {rounding.layer: rounding for rounding in block.roundings}
    layers: dict[nn.Module, PlainLayer] = {}
    convolutions, norms = _called(part, QuantizedConv2d), _called(part, nn.BatchNorm2d)
    for layer, norm in zip(convolutions, norms, strict=True):
        assert layer.gain is not None and layer.ends is not None
        fixed = grid_of(layer.ends[0], layer.ends[1], layer.weight_bits)
        grid = _grid(fixed, layer.weight_bits, layer.gain, layer.weight[0].numel(), (-1, 1, 1, 1))
        rounding = roundings.get(layer)
        source = layer.weight if rounding is None else rounding.v
        trained = nn.Parameter(source.detach().clone(memory_format=memory))
        base = None if rounding is None else rounding.base.clone(memory_format=memory)
        layers[layer] = PlainLayer(grid, copy.deepcopy(norm), trained, base, exponent)
    held = work.values()
    # Both read values of the same shape: the block has no stride.
    elements = held.inputs[0].numel()
    grids: dict[nn.Module, PlainGrid] = {}
    for quantizer in _called(part, ActivationQuantizer):
        assert quantizer.gain is not None
        fixed = grid_of(quantizer.range_min, quantizer.range_max, quantizer.bits)
        grids[quantizer] = _grid(fixed, quantizer.bits, quantizer.gain, elements, ())
    own = [layers[layer] for layer in block.layers]
    return PlainReconstruction(
        list(layers.values()),
        list(grids.values()),
        (held.inputs, held.floats, held.targets),
        [
            *(layer.trained for layer in own),
            *(layer.grid.gain for layer in own),
            *(grids[q].gain for q in block.ranges),
        ],
        recipe.rounding_learning_rate,
        batch_size=recipe.batch_size,
        keep=recipe.keep,
        mix=recipe.mix,
        penalized=recipe.rounding_weight,
        memory_format=memory,
    )


def _grid(
    fixed: Grid, bits: int, gain: nn.Parameter, elements: int, shape: tuple[int, ...]
) -> PlainGrid:
    return PlainGrid(
        fixed.scale.view(shape),
        fixed.zero_point.view(shape),
        bits,
        nn.Parameter(gain.detach().clone()),
        lsq_scale(elements, bits),
    )
