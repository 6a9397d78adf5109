"""Images that are made again against the quantized network, in turn with its training."""

import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from synq_fast.engine import run as engine_run
from synq_fast.engine.run import Run
from synq_fast.errors import RecipeError, RunFolderError
from synq_fast.models import Teacher
from synq_fast.optimize.loop import Loop
from synq_fast.quant import ActivationQuantizer, BitWidths, find_structure, trace
from synq_fast.recipes import list_recipes, load_recipe
from synq_fast.studies.workbench import Workbench
from synq_fast.synthesis.student import ImageStudent
from synq_fast.synthesis.synthesizer import Synthesizer
from synq_fast.synthesis.teacher import ImageTeacher
from tests.tiny import TINY_OVERRIDES, equal_states, run, tiny_net
from tests.transformers import SHAPE, TinyViT, tiny_vit

FEW = {
    "synthesis.augment_probability": 0.0,
    "synthesis.augment_roll": 0,
    "synthesis.images": 6,
    "synthesis.refresh.every": 2,
    "synthesis.refresh.steps": 3,
    "finetune.steps": 5,
}


def quiet(recipe: str, teacher=None, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has no effect")
        overrides = {**FEW, **options.pop("overrides", {})}
        return run(teacher or tiny_vit(), recipe=recipe, overrides=overrides, **options)


def images_of(folder, number: int) -> torch.Tensor:
    name = "bank" if number == 0 else f"bank-{number:03d}"
    return load_file(str(folder / name / "shard-00000.safetensors"))["images"]


def ranges_of(model: nn.Module) -> list[float]:
    found = [m for m in model.modules() if isinstance(m, ActivationQuantizer)]
    return [float(m.range_max.max()) for m in found]


def test_psaq_v2_goes_on_with_its_images_and_finds_ranges_again(tmp_path):
    quiet("psaq-v2", output=tmp_path)
    first, second, third = (images_of(tmp_path, n) for n in range(3))
    assert not (tmp_path / "bank-003").exists()
    # Three steps of Adam at a rate of 0.2 from where they were.
    for before, after in ((first, second), (second, third)):
        assert 0 < (after - before).abs().mean() < 0.6
    plain = quiet("psaq-v2", overrides={"finetune.steps": 2})
    renewed = quiet("psaq-v2", overrides={"finetune.steps": 3, "finetune.learning_rate": 1e-12})
    assert ranges_of(plain.model) != ranges_of(renewed.model)
    kept = {"finetune.steps": 3, "synthesis.refresh.ranges": False}
    assert ranges_of(plain.model) == ranges_of(quiet("psaq-v2", overrides=kept).model)


def test_maskaq_begins_with_noise_each_time(tmp_path):
    result = quiet("maskaq", output=tmp_path)
    first, second, third = (images_of(tmp_path, n) for n in range(3))
    for before, after in ((first, second), (second, third)):
        correlation = torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]
        assert abs(correlation) < 0.2
    assert {"kl", "head_similarity"} <= result.history[-1].keys()


@pytest.mark.parametrize("recipe", ["psaq-v2", "maskaq"])
def test_what_reads_the_model_counts_from_the_first_turn_on(tmp_path, recipe):
    quiet(recipe, output=tmp_path)
    losses = {
        name: (tmp_path / name / "batch-00000.jsonl").read_text()
        for name in ("bank", "bank-001", "bank-002")
    }
    own = "discrepancy" if recipe == "psaq-v2" else "alignment"
    assert [f'"{own}"' in losses[name] for name in losses] == [False, True, True]
    assert '"round": 2' in losses["bank-002"]


def test_images_depend_on_the_model_as_it_is_then(tmp_path):
    for rate in (1e-3, 1e-1):
        overrides = {"finetune.learning_rate": rate, "synthesis.refresh.ranges": False}
        quiet("psaq-v2", output=tmp_path / str(rate), overrides=overrides)
    slow, fast = (tmp_path / str(rate) for rate in (1e-3, 1e-1))
    assert torch.equal(images_of(slow, 0), images_of(fast, 0))
    assert not torch.equal(images_of(slow, 1), images_of(fast, 1))


def test_a_turn_finds_images_on_which_the_networks_differ():
    differences = {}
    batch = Synthesizer.batch

    def noted(self, index, count, report=None):
        images, labels = batch(self, index, count, report)
        if self.round is not None:
            with torch.no_grad():
                shown = self.round.student.look(self.teacher(images, labels))
            gap = float((shown.logits - shown.student).abs().mean())
            differences[weight] = gap
        return images, labels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Synthesizer, "batch", noted)
        for weight in (1e-9, 100.0):
            overrides = {"synthesis.discrepancy.weight": weight, "synthesis.refresh.steps": 30}
            quiet("psaq-v2", overrides={**overrides, "finetune.steps": 3}, bits="w2a8")
    assert differences[100.0] > 1.3 * differences[1e-9]


def test_without_turns_nothing_is_made_again(tmp_path):
    overrides = {"synthesis.refresh.every": 10}
    result = quiet("psaq-v2", output=tmp_path, overrides=overrides)
    assert not list(tmp_path.glob("bank-*")) and "refresh" not in result.metrics["seconds"]


@pytest.mark.parametrize("recipe", ["psaq-v2", "maskaq"])
def test_in_memory_and_in_files_it_is_the_same(tmp_path, recipe):
    overrides = {"finetune.bank": "stream"}
    streamed = quiet(recipe, output=tmp_path, overrides=overrides)
    assert equal_states(streamed.model, quiet(recipe).model)


def killed_after(monkeypatch, title: str, count: int, run_it) -> None:
    advance, left = Loop.advance, [count]

    def stop(self):
        if self.advice.title == title:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "advance", stop)
        with pytest.raises(KeyboardInterrupt):
            run_it()


def test_images_of_a_turn_that_are_gone_are_not_made_against_another_model(tmp_path, monkeypatch):
    def work(**options):
        return quiet("psaq-v2", output=tmp_path / "run", **options)

    expected = quiet("psaq-v2")
    killed_after(monkeypatch, "fine-tuning", 3, work)
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "run", kept)
    shutil.rmtree(tmp_path / "run" / "bank-001")
    with pytest.raises(RunFolderError, match=r"in round 1 .*bank-001 lacks 1 of 1.*checkpoint"):
        work(resume=True)
    for path in (tmp_path / "run").glob("checkpoint*"):
        path.unlink()
    assert equal_states(work(resume=True).model, expected.model)
    resumed = quiet("psaq-v2", output=kept, resume=True)
    assert equal_states(resumed.model, expected.model)


def test_any_loss_may_meet_a_convolutional_network_in_turns(tmp_path):
    """The part is no transformer's: SynQ's own recipe, with images that compete."""
    overrides = {**FEW, "synthesis.discrepancy.weight": 1.0}
    results = [
        run(recipe="synq-digits", overrides=overrides, output=tmp_path / str(n)) for n in range(2)
    ]
    assert equal_states(results[0].model, results[1].model)
    log = (tmp_path / "0" / "bank-001" / "batch-00000.jsonl").read_text()
    assert '"discrepancy"' in log and '"statistics"' in log


def test_widths_on_average_come_before_the_turns():
    result = quiet("psaq-v2", bits="auto:4.0", overrides={"finetune.steps": 3})
    assert "average bits" in result.metrics and result.metrics["seconds"]["refresh"] > 0


def test_seconds_of_a_phase_within_another_count_once(monkeypatch):
    work = Run(tiny_vit(), load_recipe("psaq-v2"), BitWidths(4, 4), torch.device("cpu"))
    now = [0.0]
    monkeypatch.setattr(engine_run.time, "perf_counter", lambda: now[0])
    with work.phase("fine-tuning", 1):
        now[0] += 5
        for _ in range(2):
            with work.phase("refresh", 1):
                now[0] += 3
        now[0] += 1
    with work.phase("fine-tuning", 1):
        now[0] += 10
    assert work.metrics["seconds"] == {"fine-tuning": 16.0, "refresh": 6.0}


def test_a_study_takes_its_turns_too():
    recipe = load_recipe("psaq-v2", {**TINY_OVERRIDES, **FEW, "finetune.steps": 3})
    bench = Workbench(tiny_vit(), recipe, BitWidths(4, 4), (0,), torch.device("cpu"))
    work = bench.run(0)
    students = dict(bench.stages(work, bench.source(0)))
    assert list(students) == ["calibration", "finetune"]
    assert work.metrics["seconds"]["refresh"] > 0


# What networks cannot do


class MeanViT(TinyViT):
    """Without a class token."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, 9, 8))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.layers(x)).mean(1))


def mean_vit() -> Teacher:
    torch.manual_seed(0)
    return Teacher(MeanViT().eval(), "mean_vit", SHAPE, (0.5,) * 3, (0.25,) * 3, 3)


@pytest.mark.parametrize("recipe", ["psaq-v2", "maskaq", "sardfq"])
def test_a_convolutional_network_is_refused(recipe):
    with pytest.raises(RecipeError, match="has none that could be found; use a recipe for convol"):
        quiet(recipe, teacher=tiny_net())


def test_maskaq_needs_a_class_token():
    with pytest.raises(RecipeError, match=r"mean_vit has no class token.*alignment\.weight = 0"):
        quiet("maskaq", teacher=mean_vit())
    off = {"synthesis.alignment.weight": 0.0, "finetune.steps": 3}
    assert quiet("maskaq", teacher=mean_vit(), overrides=off).history


def test_windows_have_no_class_token_and_other_recipes_do_without(tmp_path):
    swin = pytest.importorskip("torchvision").models.swin_transformer
    torch.manual_seed(0)
    network = swin.SwinTransformer([2, 2], 8, [2, 2], [2, 4], [3, 3], num_classes=5).eval()
    teacher = Teacher(network, "swin", (3, 24, 24), (0.5,) * 3, (0.5,) * 3, 5)
    with pytest.raises(RecipeError, match="swin has no class token"):
        quiet("maskaq", teacher=teacher)
    assert quiet("psaq-v2", teacher=teacher, overrides={"finetune.steps": 3}).history
    blocks = {"blocks.images": 4, "blocks.steps": 1, "blocks.batch_size": 4}
    log = tmp_path / "bank" / "batch-00000.jsonl"
    quiet("sardfq", teacher=teacher, overrides=blocks, output=tmp_path)
    assert '"soft_classes"' in log.read_text()


def test_regions_need_a_grid_of_patches():
    with pytest.raises(RecipeError, match=r"synthesis\.regions enlarges.*regions\.most = 0"):
        quiet("synq-digits", teacher=tiny_net(), overrides={"synthesis.regions.most": 2})


def test_the_recipes_are_on_where_they_say_so():
    on = {name for name in list_recipes() if load_recipe(name).synthesis.regions.most}
    assert on == {"sardfq"}
    turns = {name for name in list_recipes() if load_recipe(name).synthesis.refresh.every}
    assert turns == {"psaq-v2", "maskaq"}
    maskaq = load_recipe("maskaq")
    epoch = maskaq.synthesis.images // maskaq.finetune.batch_size
    refresh = maskaq.synthesis.refresh
    assert (maskaq.finetune.steps, refresh.every) == (100 * epoch, 30 * epoch)
    assert refresh.steps == maskaq.synthesis.steps == 2000


@pytest.mark.parametrize("recipe", ["psaq", "psaq-v2", "sardfq", "mimiq", "maskaq"])
def test_recipes_for_transformers_keep_their_losses_and_warn_of_nothing(recipe):
    """A network without BatchNorms takes nothing from a recipe that reads none."""
    few = {"blocks.images": 6, "blocks.steps": 1, "blocks.batch_size": 6, "finetune.steps": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* has no effect")
        found = run(tiny_vit(), recipe=recipe, overrides={**FEW, **few})
    assert {type(x) for x in found.recipe.synthesis.losses} == {
        type(x) for x in load_recipe(recipe).synthesis.losses
    }


def test_the_model_shows_what_losses_read(tmp_path):
    """Logits, and attention before its scale, of the quantized network itself."""
    result = quiet("maskaq", overrides={"finetune.steps": 0}, bits="w3a3")
    teacher = tiny_vit()
    graph = trace(teacher.module.requires_grad_(False), teacher.example())
    structure = find_structure(graph, teacher.example())
    images = torch.randn(4, *SHAPE, requires_grad=True)
    student = ImageStudent(result.model, structure)
    unseen = ImageTeacher(graph, structure)(images, torch.zeros(4, dtype=torch.int64))
    shown = student.look(unseen)
    assert torch.equal(shown.student, result.model(images))
    assert [tuple(x.shape) for x in shown.student_attentions] == [(4, 2, 10, 10)] * 2
    with student.held():
        again = student.look(unseen)
        assert torch.equal(again.student, shown.student)
        slopes = [torch.autograd.grad(x.student.square().sum(), images)[0] for x in (shown, again)]
    assert torch.equal(*slopes) and slopes[0].abs().sum() > 0
