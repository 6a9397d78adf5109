"""Images whose least attended patches are dropped on the way."""

import dataclasses

import pytest
import torch

from synq_fast import reference
from synq_fast.bank.crops import crop
from synq_fast.bank.rolls import roll
from synq_fast.errors import RecipeError
from synq_fast.graph.structure import find_structure
from synq_fast.graph.trace import trace
from synq_fast.optimize.plateau import Plateau
from synq_fast.synthesis.kept import Kept
from synq_fast.synthesis.losses import Attended, Classes, Heads, Patches, Roughness
from synq_fast.synthesis.settings import Sparse, Synthesis
from synq_fast.synthesis.sparse import Dropping
from synq_fast.synthesis.synthesizer import Synthesizer
from synq_fast.synthesis.teacher import ImageTeacher
from tests.synthesis.test_kept import stop_at
from tests.tiny import tiny_images, tiny_net
from tests.transformers import CLASSES, PATCH, SHAPE, SIDE, tiny_vit

GRID = SIDE // PATCH
SPARSE = Sparse(share=0.3, milestones=(0.25, 0.5))
RECIPE = Synthesis(
    images=4,
    batch_size=4,
    steps=12,
    learning_rate=0.1,
    augment_probability=0.5,
    augment_roll=PATCH,
    clip=True,
    sparse=SPARSE,
    losses=(Classes(weight=1.0, gamma=0.0), Patches(), Roughness()),
)


def teacher(sparse=True) -> ImageTeacher:
    own = tiny_vit()
    graph = trace(own.module.requires_grad_(False), own.example())
    return ImageTeacher(graph, find_structure(graph, own.example()), sparse=sparse)


def synthesizer(recipe=RECIPE, kept=None) -> Synthesizer:
    return Synthesizer(
        teacher(recipe.sparse.share > 0),
        recipe,
        input_shape=SHAPE,
        classes=CLASSES,
        seed=0,
        device=torch.device("cpu"),
        valid=tiny_vit().valid_range(),
        kept=kept,
    )


def images(count=4):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(3))


LABELS = torch.tensor([0, 1, 2, 0])


def blocks(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (B, C, GRID * GRID, PATCH * PATCH) of each patch."""
    split = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return split.flatten(2, 3).flatten(3)


def test_the_most_attended_stay():
    dropping, x = Dropping(SPARSE, teacher(), 12), images()
    assert [step for step in range(12) if dropping.due(step)] == [3, 6]
    left = dropping.drop(x, LABELS, 3)
    dense = teacher(sparse=False)(x, LABELS).attentions[-1].probabilities
    looked = dense[:, :, 0, 1:].mean(1)
    expected = [sorted(sorted(range(9), key=row.tolist().__getitem__)[-6:]) for row in looked]
    assert dropping.kept.tolist() == expected  # 9 * 0.7 = 6.3
    torch.testing.assert_close(dropping.attended, looked.gather(1, dropping.kept))
    shown = blocks(left)[:, 0]
    assert [r.all(-1).nonzero().flatten().tolist() for r in shown] == expected
    assert shown.sum() == 4 * 6 * PATCH**2


def test_what_is_dropped_next_is_the_least_attended_of_the_rest():
    own, x = teacher(), images()
    dropping = Dropping(SPARSE, own, 12)
    dropping.drop(x, LABELS, 3)
    before = dropping.kept
    dropping.drop(x + 0.5, LABELS, 6)
    probabilities = own(x + 0.5, LABELS, before).attentions[-1].probabilities
    assert probabilities.shape[-2:] == (7, 7)
    looked = probabilities[:, :, 0, 1:].mean(1)
    for row, had, has in zip(looked, before, dropping.kept, strict=True):
        assert sorted(had[row.topk(4).indices].tolist()) == has.tolist()


def test_four_patches_stay_and_a_milestone_may_come_twice():
    dropping = Dropping(Sparse(share=0.2, milestones=(0.5, 0.52)), teacher(), 10)
    dropping.drop(images(), LABELS, 5)
    assert dropping.kept.shape == (4, 6)  # 9 * 0.8 = 7.2, 7 * 0.8 = 5.6
    dropping = Dropping(Sparse(share=0.9, milestones=(0.5,)), teacher(), 10)
    dropping.drop(images(), LABELS, 5)
    assert dropping.kept.shape == (4, 4)


def test_what_was_dropped_moves_with_the_image():
    """Every pixel is the number of its patch, and so says where it went."""
    dropping = Dropping(SPARSE, teacher(), 12)
    assert dropping.whole(torch.tensor([3, -1, 1])).tolist() == [3, -1, 1]
    dropping.drop(images(), LABELS, 3)
    numbers = torch.arange(9.0).view(1, 1, GRID, GRID).repeat(4, 3, 1, 1)
    numbers = numbers.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    for drawn in ([3, -5, 1], [-4, 1, 0], [8, 6, 1]):
        move = dropping.whole(torch.tensor(drawn))
        assert move[2] == drawn[2] and (move[:2] % PATCH == 0).all()
        assert all(abs(m - d) <= PATCH / 2 for m, d in zip(move.tolist(), drawn, strict=True))
        _, attention = dropping.held(numbers, *dropping.inputs())
        dropping.look(roll(attention, move), 6)
        seen = blocks(roll(numbers, move))[:, 0].mean(-1)
        for row, places, kept in zip(seen, dropping.seen, dropping.kept, strict=True):
            assert sorted(row[places].tolist()) == kept.tolist()


def test_a_crop_shows_the_places_that_are_attended_most():
    dropping = Dropping(SPARSE, teacher(), 12)
    kept, attended = torch.tensor([[0, 8]] * 4), torch.tensor([[0.1, 0.3]] * 4)
    _, attention = dropping.held(images(), kept, attended)
    maps = torch.tensor([[0.5, 0.0, -0.5], [0.0, 0.5, -0.5]]).repeat(4, 1, 1)
    dropping.look(crop(attention, maps), 3)
    # The upper left half of a side: patch 0 on 2 x 2 of its pixels' places, and a part of 1, 3, 4.
    assert set(dropping.seen[0].tolist()) == {0, 1, 3}
    dropping.look(attention, 1)
    assert dropping.seen.tolist() == [[8]] * 4


def test_pixels_of_dropped_patches_stay_as_they_were():
    loop, pixels = synthesizer().optimization(0, 4)
    snapshots = {}
    while loop.done < loop.steps:
        snapshots[loop.done] = pixels.images()[0].detach().clone()
        loop.advance()
    last = pixels.images()[0].detach()
    assert last.shape == (4, *SHAPE)
    kept = loop.iteration.dropping.kept
    assert kept.shape == (4, 4)  # 6 * 0.7 = 4.2
    for then, count in ((3, 6), (6, 4)):
        same = (blocks(last) == blocks(snapshots[then])).all(-1).all(1)
        assert (same.sum(1) >= GRID**2 - count).all()
    moved = (blocks(last) != blocks(snapshots[6])).any(-1).any(1)
    assert [row.nonzero().flatten().tolist() for row in moved] == kept.tolist()
    assert (blocks(last) != blocks(snapshots[0])).any(-1).any(1).all()


def test_a_drop_lets_the_rate_wait_anew():
    loop, _ = synthesizer(dataclasses.replace(RECIPE, patience=3)).optimization(0, 4)
    plateau = loop.iteration.plateau
    for _ in range(3):
        loop.advance()
    plateau.best.fill_(-1e9)
    rate = float(plateau.rate)
    loop.advance()
    assert float(plateau.best) > -1e9 and float(plateau.rate) == rate


def test_forgetting_keeps_the_rate():
    plateau = Plateau(torch.tensor(0.5), 0, 1e-4)
    for loss in (1.0, 2.0):
        plateau.step(torch.tensor(loss))
    plateau.forget()
    plateau.step(torch.tensor(5.0))
    assert float(plateau.rate) == pytest.approx(0.05) and float(plateau.best) == 5.0


@pytest.mark.parametrize("stop", [2, 3, 4, 8])
def test_goes_on_where_it_was_killed(tmp_path, monkeypatch, stop):
    with monkeypatch.context() as patch:
        stop_at(patch, 99, KeyboardInterrupt)
        expected, labels = synthesizer().batch(0, 4)
    with monkeypatch.context() as patch:
        stop_at(patch, stop, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            synthesizer(kept=Kept(tmp_path, 0.0)).batch(0, 4)
    with monkeypatch.context() as patch:
        rates = stop_at(patch, 99, KeyboardInterrupt)
        found, again = synthesizer(kept=Kept(tmp_path, 0.0)).batch(0, 4)
    assert len(rates) == 12 - stop
    assert torch.equal(found, expected) and torch.equal(labels, again)


def test_a_batch_depends_on_its_index_alone():
    maker = synthesizer()
    first, second = maker.batch(0, 4)[0], maker.batch(1, 4)[0]
    assert torch.equal(second, synthesizer().batch(1, 4)[0])
    assert torch.equal(first, maker.batch(0, 4)[0])
    # Finished images are judged by all of their patches.
    x, whole = images(), teacher(sparse=False)
    assert torch.equal(maker.teacher.judged(x, LABELS).logits, whole(x, LABELS).logits)


def test_without_a_share_nothing_changes():
    off = dataclasses.replace(RECIPE, sparse=Sparse(share=0.0))
    loop, _ = synthesizer(off).optimization(0, 4)
    assert loop.iteration.dropping is None and off.sparse == Synthesis().sparse.__class__(0.0)
    never = dataclasses.replace(RECIPE, sparse=Sparse(share=0.3, milestones=(1.0,)))
    assert torch.equal(synthesizer(off).batch(0, 4)[0], synthesizer(never).batch(0, 4)[0])
    assert not torch.equal(synthesizer(off).batch(0, 4)[0], synthesizer().batch(0, 4)[0])


def test_each_number_of_patches_is_recorded_of_its_own():
    loop, _ = synthesizer(dataclasses.replace(RECIPE, augment_probability=0.0)).optimization(0, 4)
    loop.run()
    shapes = [[tuple(s) for s in shapes] for shapes in loop._works]
    assert shapes == [[(3,)], [(4, 6), (4, 6), (3,)], [(4, 4), (4, 4), (3,)]]


def test_losses_of_few_patches_know_what_comes_before_them():
    """Six patches make no square: two of them would pass for a class token and a register."""
    g = torch.Generator().manual_seed(1)
    logits, values = torch.randn(4, 2, 7, 7, generator=g), torch.randn(4, 2, 7, 5, generator=g)
    few = (Attended(logits, logits.softmax(-1), values, 1),)
    seen = dataclasses.replace(teacher()(images(), LABELS), attentions=few)
    expected = -reference.patch_similarity_entropy(values.mean(1)[:, 1:]).mean()
    torch.testing.assert_close(Patches()(seen), expected)
    torch.testing.assert_close(
        Heads()(seen), reference.inter_head_similarity_loss(logits[..., 1:, 1:])
    )


def test_networks_without_patches_are_refused_by_name():
    graph = trace(tiny_net().requires_grad_(False), tiny_images(2))
    with pytest.raises(RecipeError, match=r"TinyNet cannot do without.*sparse\.share = 0"):
        ImageTeacher(graph, find_structure(graph, tiny_images(2)), sparse=True)
