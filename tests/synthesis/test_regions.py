"""Regions of images with classes of their own."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from synq_fast.graph.structure import find_structure
from synq_fast.graph.trace import trace
from synq_fast.runtime.seeding import generator_for
from synq_fast.synthesis.kept import Kept
from synq_fast.synthesis.losses import Classes, SoftClasses, Variation, focal_class_loss
from synq_fast.synthesis.regions import draw_regions, enlarged, place_classes
from synq_fast.synthesis.settings import Regions, Synthesis
from synq_fast.synthesis.synthesizer import Synthesizer
from synq_fast.synthesis.teacher import ImageTeacher
from tests.synthesis.test_kept import stop_at
from tests.transformers import CLASSES, PATCH, SHAPE, SIDE, tiny_vit

GRID = SIDE // PATCH
RECIPE = Synthesis(
    batch_size=4,
    steps=8,
    learning_rate=0.1,
    augment_probability=0.5,
    augment_roll=2,
    regions=Regions(most=4, share=0.6),
    losses=(SoftClasses(), Variation(weight=0.05)),
)


def teacher() -> ImageTeacher:
    own = tiny_vit()
    graph = trace(own.module.requires_grad_(False), own.example())
    return ImageTeacher(graph, find_structure(graph, own.example()))


def synthesizer(recipe=RECIPE, kept=None, seed=0) -> Synthesizer:
    return Synthesizer(
        teacher(),
        recipe,
        input_shape=SHAPE,
        classes=CLASSES,
        seed=seed,
        device=torch.device("cpu"),
        kept=kept,
    )


@pytest.mark.parametrize("grid", [2, 3, 7, 14])
@pytest.mark.parametrize("most", [1, 2, 4])
def test_regions_are_whole_patches_that_do_not_overlap(grid, most):
    generator = torch.Generator().manual_seed(grid)
    counts, sizes, places = set(), set(), set()
    for _ in range(200):
        regions, own = draw_regions(3, most, grid, generator)
        counts.add(len(regions))
        assert regions.dtype == own.dtype == torch.int64 and regions.shape == (len(own), 3, 4)
        for image in range(3):
            seen = torch.zeros(grid, grid)
            for (top, left, bottom, right), place in zip(
                regions[:, image].tolist(), own[:, image].tolist(), strict=True
            ):
                assert 0 <= top < bottom <= grid and 0 <= left < right <= grid
                seen[top:bottom, left:right] += 1
                # Within its quarter.
                assert (top >= grid // 2) == (place // 2 == 1)
                assert (left >= grid // 2) == (place % 2 == 1)
                sizes.add(bottom - top)
                places.add(place)
            assert seen.max() == 1
    assert counts == set(range(1, most + 1)) and places == {0, 1, 2, 3}
    if grid == 14:
        assert sizes == {4, 5, 6, 7}


@pytest.mark.parametrize("shape", [(3, 12, 12), (2, 12, 8)])
def test_a_region_is_enlarged_as_an_image_of_its_own(shape):
    images = torch.randn(2, *shape, requires_grad=True)
    regions = torch.tensor([[[0, 0, 4, 4], [4, 2, 12, 8]], [[8, 4, 12, 6], [0, 0, 4, 2]]])
    found = enlarged(images, regions)
    assert found.shape == (4, *shape)
    exact = images.detach().double().requires_grad_()
    one_by_one = [
        functional.interpolate(exact[n : n + 1, :, t:b, lef:r], shape[1:], mode="bilinear")
        for boxes in regions.tolist()
        for n, (t, lef, b, r) in enumerate(boxes)
    ]
    expected = torch.cat(one_by_one)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    weights = torch.randn(4, *shape)
    (slope,) = torch.autograd.grad((found * weights).sum(), images)
    (wanted,) = torch.autograd.grad((expected * weights.double()).sum(), exact)
    torch.testing.assert_close(slope, wanted.float(), rtol=1e-4, atol=1e-5)
    # Not a trace of a gradient elsewhere: Adam would make a step of it.
    inside = torch.zeros(2, *shape, dtype=torch.bool)
    for boxes in regions.tolist():
        for n, (t, lef, b, r) in enumerate(boxes):
            inside[n, :, t:b, lef:r] = True
    assert (slope[~inside] == 0).all() and (slope[inside] != 0).all()


def test_every_place_has_another_class():
    labels = torch.arange(6)
    found = place_classes(labels, 6, torch.Generator().manual_seed(0))
    for label, places in zip(labels.tolist(), found.tolist(), strict=True):
        assert len({label, *places}) == 5
    few = place_classes(torch.tensor([0, 1, 2]), 3, torch.Generator().manual_seed(0))
    assert all(label not in row for label, row in zip([0, 1, 2], few.tolist(), strict=True))
    two = place_classes(torch.tensor([0, 1]), 2, torch.Generator().manual_seed(0))
    assert two.tolist() == [[1] * 4, [0] * 4]


def test_the_class_loss_of_a_step_sees_the_regions_of_the_images_as_they_are():
    recipe = dataclasses.replace(
        RECIPE, losses=(Classes(weight=1.0, gamma=0.0),), regions=Regions(most=4)
    )
    maker = synthesizer(recipe)
    loop, pixels = maker.optimization(0, 4)
    inputs = loop.iteration.prepare(0)
    regions, places, *moves = inputs
    whole, labels = (x.detach().clone() for x in pixels.images())
    moved = loop.iteration._moved(whole, moves)
    assert not torch.equal(moved, whole)
    found = loop.iteration(*inputs)
    assert loop.iteration.names == ("classes",)
    network = tiny_vit().module.double().requires_grad_(False)
    cut, classes = [], []
    own = maker.optimization(0, 4)[0].iteration.draws
    assert own.grid == GRID
    for boxes, quarters in zip(regions.tolist(), places.tolist(), strict=True):
        for n, ((t, lef, b, r), _) in enumerate(zip(boxes, quarters, strict=True)):
            assert not any(side % PATCH for side in (t, lef, b, r))
            part = whole[n : n + 1, :, t:b, lef:r].double()
            cut.append(functional.interpolate(part, (SIDE, SIDE), mode="bilinear"))
    # The classes of the places follow from the batch's generator, behind its labels.
    generator = generator_for(0, "synthesis", 0)
    torch.randperm(4, generator=generator)
    held = place_classes(labels, CLASSES, generator)
    for quarters in places.tolist():
        classes += [int(held[n, place]) for n, place in enumerate(quarters)]
    expected = focal_class_loss(network(moved.double()), labels, 0.0) + focal_class_loss(
        network(torch.cat(cut)), torch.tensor(classes), 0.0
    )
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-4)


def test_some_steps_look_at_no_region():
    loop, _ = synthesizer().optimization(0, 4)
    loop.run()
    counts = {shapes[0][0] for shapes in loop._works}
    assert 0 in counts and counts - {0}
    never = dataclasses.replace(RECIPE, regions=Regions(most=4, share=0.0))
    loop, _ = synthesizer(never).optimization(0, 4)
    loop.run()
    assert {shapes[0][0] for shapes in loop._works} == {0}


def test_the_places_learn_their_classes():
    recipe = dataclasses.replace(
        RECIPE,
        steps=80,
        learning_rate=0.3,
        augment_probability=0.0,
        augment_roll=0,
        regions=Regions(most=4),
        losses=(Classes(weight=1.0, gamma=0.0),),
    )
    loop, _ = synthesizer(recipe).optimization(0, 4)
    terms = [float(loop.advance()) for _ in range(80)]
    assert sum(terms[-20:]) < 0.95 * sum(terms[:20])


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 7])
def test_goes_on_where_it_was_killed(tmp_path, monkeypatch, stop):
    with monkeypatch.context() as patch:
        stop_at(patch, 99, KeyboardInterrupt)
        expected, labels = synthesizer().batch(0, 4)
    with monkeypatch.context() as patch:
        stop_at(patch, stop, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            synthesizer(kept=Kept(tmp_path, 0.0)).batch(0, 4)
    found, again = synthesizer(kept=Kept(tmp_path, 0.0)).batch(0, 4)
    assert torch.equal(found, expected) and torch.equal(labels, again)


def test_a_batch_depends_on_its_index_and_the_seed_alone():
    maker = synthesizer()
    first, second = maker.batch(0, 4)[0], maker.batch(1, 4)[0]
    assert torch.equal(second, synthesizer().batch(1, 4)[0])
    assert torch.equal(first, maker.batch(0, 4)[0])
    assert not torch.equal(first, synthesizer(seed=1).batch(0, 4)[0])
