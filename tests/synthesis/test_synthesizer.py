import dataclasses

import pytest
import torch

from synq_fast.errors import NonFiniteLossError
from synq_fast.synthesis import optimization
from synq_fast.synthesis.losses import Classes, Margin, Statistics, statistics_distance
from synq_fast.synthesis.settings import Centers, Latent, Synthesis
from synq_fast.synthesis.synthesizer import Synthesizer
from tests.tiny import CLASSES, SHAPE, tiny_images, tiny_net, tiny_synthesizer

RECIPE = Synthesis(images=12, batch_size=6, steps=4, augment_probability=0.5)


def synthesizer(recipe: Synthesis = RECIPE, seed: int = 0, net=None) -> Synthesizer:
    return tiny_synthesizer(recipe, net=net, seed=seed)


def terms_of(record):
    return {name: value for name, value in record.items() if name != "step"}


def decisive_net():
    """A random network whose classes are as far apart as a trained one's."""
    net = tiny_net()
    with torch.no_grad():
        net.fc.weight.mul_(20)
    return net


def test_images_satisfy_statistics_and_classes():
    recipe = Synthesis(batch_size=12, steps=150, learning_rate=0.1)
    maker = synthesizer(recipe, net=decisive_net())
    seen = []
    images, labels = maker.batch(0, 12, lambda r: seen.append((r["step"], terms_of(r))))
    assert images.shape == (12, *SHAPE) and not images.requires_grad
    assert [step for step, _ in seen] == list(range(10, 151, 10))
    first, last = seen[0][1], seen[-1][1]
    assert sum(last.values()) < 0.6 * sum(first.values())
    seen = maker.teacher(images, labels)
    noise = maker.teacher(tiny_images(12), labels)
    distances = [statistics_distance(s.norms, s.running) for s in (seen, noise)]
    assert distances[0] < 0.6 * distances[1]
    assert (seen.logits.argmax(1) == labels).float().mean() >= 0.9


def test_classes_are_balanced_over_batches():
    maker = synthesizer(Synthesis(batch_size=4, steps=1))
    labels = torch.cat([maker.batch(index, 4)[1] for index in range(3)])
    assert labels.bincount(minlength=CLASSES).tolist() == [4, 4, 4]


def test_batch_depends_only_on_seed_and_index():
    alone = synthesizer().batch(1, 6)
    maker = synthesizer()
    maker.batch(0, 6)
    after = maker.batch(1, 6)
    again = maker.batch(1, 6)
    for other in (after, again):
        assert torch.equal(alone[0], other[0]) and torch.equal(alone[1], other[1])
    assert not torch.equal(alone[0], maker.batch(0, 6)[0])
    assert not torch.equal(alone[0], synthesizer(seed=1).batch(1, 6)[0])


def test_global_random_state_plays_no_part():
    torch.manual_seed(1)
    first = synthesizer().batch(0, 6)[0]
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, synthesizer().batch(0, 6)[0])
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_augmentation_changes_the_images_and_none_means_none(monkeypatch):
    calls = []
    original = optimization.random_crops
    monkeypatch.setattr(
        optimization,
        "random_crops",
        lambda *args: (calls.append(args[1]), original(*args))[1],
    )
    synthesizer(dataclasses.replace(RECIPE, augment_probability=0.0)).batch(0, 6)
    assert not calls
    synthesizer(
        dataclasses.replace(RECIPE, augment_probability=1.0, augment_scale=(0.3, 0.7))
    ).batch(0, 6)
    assert calls == [(0.3, 0.7)] * RECIPE.steps


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ((Statistics(), Classes(weight=0)), "statistics"),
        ((Classes(), Statistics(weight=0)), "classes"),
    ],
)
def test_weight_zero_switches_a_term_off(change, kept):
    seen = []
    recipe = dataclasses.replace(RECIPE, steps=10, losses=change)
    synthesizer(recipe).batch(0, 6, lambda r: seen.append(terms_of(r)))
    assert {name for name, value in seen[-1].items() if value} == {kept}


CENTERS = Centers(weight=0.5, steps=3)


def test_centre_statistics_are_those_of_all_centres_together(monkeypatch):
    """Three classes in batches of two: the last batch is smaller, and counts less."""
    maker = synthesizer(dataclasses.replace(RECIPE, batch_size=2, centers=CENTERS))
    batches = []
    original = maker._pooled_statistics
    monkeypatch.setattr(maker, "_pooled_statistics", lambda b: (batches.extend(b), original(b))[1])
    maker.make_centers()
    assert [len(batch) for batch in batches] == [2, 1]
    inputs = maker.teacher(torch.cat(batches), torch.zeros(3)).norms
    for (mean, variance), x in zip(maker.center_targets, inputs, strict=True):
        torch.testing.assert_close(mean, x.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
        expected = x.var((0, 2, 3), correction=0)
        torch.testing.assert_close(variance, expected, rtol=1e-5, atol=1e-6)
        assert mean.dtype == variance.dtype == torch.float32


def test_centres_add_a_term_and_are_reproducible():
    recipe = dataclasses.replace(RECIPE, steps=10, centers=CENTERS)
    made = []
    for _ in range(2):
        maker = synthesizer(recipe)
        maker.make_centers()
        seen = []
        made.append(maker.batch(0, 6, lambda r, seen=seen: seen.append(terms_of(r)))[0])
        assert set(seen[-1]) == {"statistics", "classes", "centers"}
    assert torch.equal(*made)
    assert not torch.equal(made[0], synthesizer(recipe).batch(0, 6)[0])


def test_centre_images_show_their_classes():
    centers = Centers(weight=1.0, steps=150, learning_rate=0.1)
    maker = synthesizer(dataclasses.replace(RECIPE, centers=centers), net=decisive_net())
    seen = []
    maker.make_centers(lambda r: seen.append(terms_of(r)))
    assert seen[-1]["classes"] < 0.3 * seen[0]["classes"]


@pytest.mark.parametrize(
    ("weight", "term"), [("fc.weight", "classes"), ("bn2.running_mean", "statistics")]
)
def test_teacher_with_nan_stops_naming_step_and_term(weight, term):
    net = tiny_net()
    net.state_dict()[weight][0] = torch.nan
    with pytest.raises(NonFiniteLossError, match=f'step 0: the term "{term}" is nan'):
        synthesizer(net=net).batch(0, 6)


def test_start_is_not_changed_and_teacher_collects_no_gradients():
    net = tiny_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    maker = synthesizer(net=net)
    maker.batch(0, 6)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


LATENT = Synthesis(
    batch_size=6, steps=30, parametrization="latent", latent=Latent(8), learning_rate=0.05
)


def test_latents_and_their_network_are_optimized():
    maker, seen = synthesizer(LATENT), []
    images, labels = maker.batch(0, 5, lambda r: seen.append(terms_of(r)))
    assert images.shape == (5, *SHAPE) and len(labels) == 5 and not images.requires_grad
    assert seen[-1]["statistics"] < 0.95 * seen[0]["statistics"]
    # Of zero mean and unit variance over the batch, whatever the losses say.
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(SHAPE[0]), atol=1e-4, rtol=0)
    assert torch.equal(images, synthesizer(LATENT).batch(0, 5)[0])
    assert not torch.equal(images, synthesizer(LATENT, seed=1).batch(0, 5)[0])


def test_the_rate_of_the_network_decays_and_that_of_the_latents_waits():
    recipe = dataclasses.replace(LATENT, latent=Latent(8, 0.01, 0.5, 10), patience=1000)
    loop, _ = synthesizer(recipe).optimization(0, 5)
    rates = []
    for _ in range(recipe.steps):
        loop.advance()
        rates.append([float(group["lr"]) for group in loop.iteration.optimizer.param_groups])
    assert rates[0] == pytest.approx([0.05, 0.01])
    assert rates[10] == pytest.approx([0.05, 0.005])
    assert rates[29] == pytest.approx([0.05, 0.0025])


FOLLOWING = dataclasses.replace(
    RECIPE, steps=10, losses=(Statistics(), Classes(), Margin(low=1.5, high=2.0))
)


def test_images_keep_a_distance_from_those_of_earlier_batches():
    first = synthesizer(FOLLOWING)
    images, labels = first.batch(0, 6)
    alone = first.batch(1, 6)[0]
    first.remember(images, labels)
    after = first.batch(1, 6)[0]
    assert first.follows and not torch.equal(alone, after)
    assert not synthesizer().follows


def test_images_that_no_label_asked_for_are_of_the_class_that_the_teacher_sees():
    maker = synthesizer(dataclasses.replace(RECIPE, losses=(Statistics(),)))
    images, labels = maker.batch(0, 6)
    assert torch.equal(labels, maker.teacher(images, labels).logits.argmax(1))


@pytest.mark.parametrize("parametrization", ["pixels", "spectrum", "latent"])
def test_images_do_not_depend_on_the_defaults_of_the_process(parametrization):
    recipe = dataclasses.replace(LATENT, parametrization=parametrization)
    expected = synthesizer(recipe).batch(0, 5)[0]
    maker = synthesizer(recipe)
    torch.set_default_dtype(torch.float64)
    try:
        found = maker.batch(0, 5)[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
