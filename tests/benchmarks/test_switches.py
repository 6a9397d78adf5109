"""Each inefficiency of the published code is measured, alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import harness, switches
from benchmarks.baselines.published_config import PublishedStepConfig
from benchmarks.baselines.published_synthesis import PublishedSynthesisConfig
from tests.benchmarks.workloads import tiny_workload


@pytest.fixture(autouse=True)
def _cpu(monkeypatch):
    monkeypatch.setattr(harness, "DEVICE", torch.device("cpu"))


@pytest.mark.parametrize("switch", switches.step_switches())
def test_each_switch_of_a_step_is_measured_alone(switch, monkeypatch):
    seen = []
    monkeypatch.setattr(switches, "published_step", lambda work, config: seen.append(config))
    switches.step_variant(tiny_workload(), switch)
    published, without, lean, alone = seen
    field = "standing_hooks" if switch == "leak_hooks" else switch
    for on, off in ((published, without), (alone, lean)):
        assert getattr(on, field) and not getattr(off, field)
        assert replace(on, **{field: getattr(off, field)}) == off
    # What the switch acts on is there in the lean step too.
    if switch in switches._NEEDS:
        assert lean.separate_cam_pass


def test_no_switch_is_forgotten():
    costs = set(PublishedStepConfig.costs())
    lean, full = PublishedStepConfig.lean(), PublishedStepConfig()
    differing = {name for name in vars(full) if getattr(full, name) != getattr(lean, name)}
    assert differing == costs == set(switches.step_switches())
    work = tiny_workload()
    small = set(switches.synthesis_switches(work))
    assert small == set(PublishedSynthesisConfig.costs()) - {"augment_one_by_one"}
    large = replace(work, images=torch.ones(1, 2, 64, 64))
    assert set(switches.synthesis_switches(large)) == set(PublishedSynthesisConfig.costs())


@pytest.mark.parametrize("switch", ["leak_hooks", "copy_to_host"])
def test_switches_of_the_loop_run(switch):
    variant = switches.synthesis_variant(tiny_workload(), switch, 2)
    for call in (variant.published, variant.without, variant.lean, variant.alone):
        call()


def test_a_cost_is_found_and_the_dearest_comes_first():
    def work(repeats: int):
        return lambda: [torch.ones(200, 200) @ torch.ones(200, 200) for _ in range(repeats)]

    dear = switches.Variant("dear", work(40), work(20), work(2), work(20))
    cheap = switches.Variant("cheap", work(40), work(39), work(2), work(2))
    rows = [switches.costs(variant, rounds=5, works=2) for variant in (cheap, dear)]
    table = switches.table("step", "title", rows, "note")
    assert [row[0] for row in table.rows] == ["dear", "cheap"]
    _, saved, of_published, added, of_lean = table.rows[0]
    assert 25 < of_published < 75 and of_lean > 200
    assert saved > 0 and added > 0
