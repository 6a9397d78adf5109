"""Runs on mixed images, and with BatchNorm statistics of the quantized model's own."""

import pytest
import torch

import synq_fast
from synq_fast.bank.mixing import MixedBatches
from synq_fast.optimize.loop import Loop
from tests.tiny import equal_states, run, tiny_net

MIXED = {"finetune.mixup": 0.5, "finetune.distillation.label_weight": 0.0}
ONLINE = {
    "generator.steps": 2,
    "generator.batch_size": 6,
    "generator.latent": 5,
    "generator.condition": "norms",
}
NORMS = {"stages": ["synthesis", "calibration", "norms", "finetune"], "norms.images": 8}


def mixed(recipe: str, **options):
    few = ONLINE if recipe == "gdfq-digits" else {}
    return run(recipe=recipe, overrides={**MIXED, **few}, **options)


@pytest.mark.filterwarnings("ignore:(synthesis|generator|filter).* has no effect")
@pytest.mark.parametrize("recipe", ["synq-digits", "gdfq-digits"])
def test_run_on_mixed_images_goes_on_after_a_kill(tmp_path, recipe, monkeypatch):
    expected = mixed(recipe)
    advance = Loop.advance

    def killed(self):
        if self.advice.title == "fine-tuning" and self.done == 3:
            raise KeyboardInterrupt
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            mixed(recipe, output=tmp_path)
    resumed = mixed(recipe, output=tmp_path, resume=True)
    assert equal_states(resumed.model, expected.model)
    with monkeypatch.context() as patch:
        patch.setattr(MixedBatches, "shares", lambda self, step: torch.ones(self.batch_size))
        assert not equal_states(mixed(recipe).model, expected.model)


def test_statistics_are_the_model_s_own(tmp_path):
    result = run(overrides={**NORMS, "finetune.steps": 0}, output=tmp_path)
    teacher, student = tiny_net().state_dict(), result.model.state_dict()
    changed = {n for n, v in teacher.items() if not torch.equal(student[n], v)}
    assert changed == {f"bn{i}.running_{m}" for i in (1, 2) for m in ("mean", "var")}
    means = run(overrides={**NORMS, "norms.spread": False, "finetune.steps": 0})
    state = means.model.state_dict()
    changed = {n for n, v in teacher.items() if not torch.equal(state[n], v)}
    assert changed == {"bn1.running_mean", "bn2.running_mean"}
    assert equal_states(synq_fast.load(tmp_path, model=tiny_net()), result.model)


def test_training_goes_on_with_these_statistics():
    result = run(overrides=NORMS)
    own = run(overrides={**NORMS, "finetune.steps": 0}).model.state_dict()
    for name, value in result.model.state_dict().items():
        if "running" in name:
            assert torch.equal(value, own[name])
    first, plain = (run(overrides=o).history[0]["kl"] for o in (NORMS, {}))
    assert first != plain
