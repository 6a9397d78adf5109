"""Whatever stages a recipe has: the same model after any kill, from the same seed, on any rank."""

import json
import warnings

import pytest
import torch

import synq_fast
from synq_fast.engine.stages import STAGES
from synq_fast.errors import RecipeError, SynqFastWarning
from synq_fast.finetune import training
from synq_fast.finetune.reconstruction import iteration
from synq_fast.optimize.loop import Loop
from synq_fast.quant import find_structure, trace
from synq_fast.recipes import list_recipes, load_recipe, schema
from tests import transformers
from tests.tiny import equal_states, labelled, run, tiny_images, tiny_net
from tests.transformers import tiny_vit

FEW = {
    "generator.steps": 4,
    "generator.batch_size": 6,
    "generator.latent": 5,
    "quantization.calibration_batches": 3,
}
RECIPES: dict[str, dict[str, object]] = {
    "calibrate-digits": {k: v for k, v in FEW.items() if k.startswith("quantization")},
    "gdfq-digits": FEW,
    # A generator that also reads the quantized network (AdaDFQ).
    "gdfq-digits, against the student": {**FEW, "generator.disagreement.weight": 1.0},
    "synq-fast-digits": {
        "stages": ["synthesis", "calibration", "blocks", "norms", "finetune"],
        "norms.images": 6,
        "blocks.images": 8,
        "blocks.steps": 3,
        "blocks.batch_size": 4,
        "blocks.global_weight": 0.5,
        "finetune.perturbation.weight": 0.0,
    },
    "synq-digits": {},
    # Images of latents, of a teacher that swings, which follow those of earlier batches.
    "synq-digits, with every image loss": {
        "synthesis.parametrization": "latent",
        "synthesis.latent.size": 4,
        "synthesis.swing": True,
        "synthesis.deviations.weight": 1.0,
        "synthesis.soft_labels.weight": 1.0,
        "synthesis.margin.weight": 1.0,
        "synthesis.prior.weight": 1.0,
        "synthesis.variation.weight": 1.0,
    },
}

RECIPES["synq-fast-vit"] = {
    **{k: v for k, v in RECIPES["synq-fast-digits"].items() if k.startswith("blocks")},
    "synthesis.augment_roll": 2,
    "blocks.keep": 0.5,
}
# Exact rewrites and closed forms on the images of calibration, and weighted distances.
RECIPES["synq-fast-vit, rewritten"] = {
    **RECIPES["synq-fast-vit"],
    "quantization.rotate": "never",
    "quantization.fold_norms": "auto",
    "quantization.ridge": 0.1,
    "quantization.weight_rounding": "balanced",
    "blocks.curvature": True,
}
# Images and model in turns, on and on or from noise.
IN_TURNS = {
    "synthesis.images": 6,
    "synthesis.augment_roll": 2,
    "synthesis.refresh.every": 2,
    "synthesis.refresh.steps": 2,
    "finetune.steps": 5,
}
RECIPES["psaq-v2"] = RECIPES["maskaq"] = IN_TURNS
# Fourier coefficients, which begin with images in the second turn.
RECIPES["synq-digits, by the spectrum"] = {
    **IN_TURNS,
    "synthesis.augment_roll": 0,
    "variety.softest": 2.0,
    "variety.brightness": 0.5,
    "synthesis.parametrization": "spectrum",
    "synthesis.refresh.restart": False,
    "synthesis.discrepancy.weight": 1.0,
}
RECIPES["sardfq"] = {
    **RECIPES["synq-fast-vit"],
    "synthesis.images": 6,
    "blocks.images": 6,
    "blocks.steps": 1,
}
TRANSFORMERS = ("synq-fast-vit", "psaq-v2", "maskaq", "sardfq")


@pytest.fixture(autouse=True)
def frequent_records(monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 2)
    monkeypatch.setattr(iteration, "LOG_EVERY", 2)


def small(recipe: str, **options):
    with warnings.catch_warnings():
        # The overrides of small runs are for every stage.
        warnings.filterwarnings("ignore", "(synthesis|generator|filter).* has no effect")
        teacher = None
        if packaged(recipe) in TRANSFORMERS:
            # Norms are folded, and the stream turned, across layers; else one shows as much.
            teacher = tiny_vit(layers=2 if "rewritten" in recipe else 1)
        return run(teacher, recipe=packaged(recipe), overrides=RECIPES[recipe], **options)


def images_of(recipe: str):
    """An evaluation set for the network that ``small`` quantizes."""
    return labelled(transformers.SHAPE) if packaged(recipe) in TRANSFORMERS else labelled()


def packaged(recipe: str) -> str:
    """The recipe that one of ``RECIPES`` changes."""
    return recipe.partition(",")[0]


def test_every_stage_that_recipes_know_is_there():
    assert tuple(STAGES) == schema.STAGES
    named = {stage for name in list_recipes() for stage in load_recipe(name).stages}
    assert named <= set(STAGES)
    tried = {s for name in RECIPES for s in load_recipe(packaged(name), RECIPES[name]).stages}
    assert tried == set(STAGES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_same_seed_same_model(recipe):
    first, second = small(recipe), small(recipe)
    assert equal_states(first.model, second.model) and first.history == second.history
    assert not equal_states(first.model, small(recipe, seed=1).model)


def advances(recipe: str) -> list[str]:
    """The titles of the loops that a run of a recipe steps through, step by step."""
    titles, advance = [], Loop.advance

    def noted(self):
        titles.append(self.advice.title)
        return advance(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "advance", noted)
        small(recipe)
    return titles


@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_at_any_step_it_ends_in_the_same_model(tmp_path, recipe):
    expected, steps = small(recipe, evaluation=images_of(recipe)), advances(recipe)
    advance = Loop.advance
    # Odd strides: before and after each record of two steps. tests/faults kills at random besides.
    for kill_at in range(0, len(steps), 3 if len(steps) < 20 else 5):
        left = [kill_at]

        def killed(self, left=left):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return advance(self)

        folder = tmp_path / str(kill_at)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Loop, "advance", killed)
            with pytest.raises(KeyboardInterrupt):
                small(recipe, output=folder, evaluation=images_of(recipe))
        resumed = small(recipe, output=folder, evaluation=images_of(recipe), resume=True)
        assert equal_states(resumed.model, expected.model), steps[kill_at]
        assert resumed.history == expected.history
        assert resumed.metrics["post-training"] == expected.metrics["post-training"]
        log = folder / "log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        assert [json.loads(line) for line in lines] == expected.history


def test_calibration_alone_does_not_train(tmp_path):
    result = small("calibrate-digits", output=tmp_path)
    assert result.history == []
    teacher = tiny_net().state_dict()
    weights = {n: v for n, v in result.model.state_dict().items() if n.endswith("weight")}
    assert all(torch.equal(value, teacher[name]) for name, value in weights.items())
    assert equal_states(synq_fast.load(tmp_path, model=tiny_net()), result.model)


def blocks_of(net):
    return find_structure(trace(net, tiny_images(2)), tiny_images(2)).blocks


def test_history_tells_stages_and_blocks_apart():
    result = small("synq-fast-digits")
    told = [(r["stage"], r.get("block"), r["step"]) for r in result.history]
    names = [block.exit for block in blocks_of(tiny_net())]
    assert told == [
        *(("blocks", name, step) for name in names for step in (2, 3)),
        *(("finetune", None, step) for step in (2, 4, 6)),
    ]
    for record in result.history[:6]:
        assert set(record) == {"stage", "block", "step", "local", "global", "rounding"}
        assert 0 < record["local"] < 100 and record["rounding"] == 0
    # The last block, and the one whose value that reads, compare nothing beyond themselves.
    assert [record["global"] > 0 for record in result.history[:6:2]] == [True, False, False]


def test_generator_and_model_are_trained_in_turn():
    result = small("gdfq-digits")
    assert {"generator_statistics", "generator_classes", "kl", "ce"} <= set(result.history[0])
    assert "generator_disagreement" not in result.history[0]
    against = small("gdfq-digits, against the student")
    assert against.history[0]["generator_disagreement"] > 0


def test_recipe_without_a_bank_has_none_to_synthesize(tmp_path):
    with pytest.raises(RecipeError, match="has no bank of images"):
        synq_fast.synthesize(tiny_net(), tmp_path, "gdfq-digits", input_shape=(2, 8, 8))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["calibration", "synthesis", "finetune"], "in the order"),
        (["synthesis", "synthesis", "calibration"], "once each"),
        (["calibration", "finetune"], "images come from one stage"),
        (["synthesis", "generator", "calibration"], "images come from one stage"),
        (["synthesis", "finetune"], "lack calibration"),
        (["sythesis"], "must be one of"),
    ],
)
def test_stages_that_cannot_be_meant(stages, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("synq-digits", {"stages": stages})


def test_values_of_a_stage_that_is_not_there_are_said():
    with pytest.warns(SynqFastWarning, match=r"generator\.steps has no effect: .* stages are"):
        load_recipe("synq-digits", {"generator.steps": 3})
