import math

import pytest
import torch

from synq_fast.finetune import training as training_module
from synq_fast.finetune.settings import Finetune
from synq_fast.finetune.training import build_optimizer, rate_factor
from tests.finetune.loops import make_loop


@pytest.fixture(autouse=True)
def frequent_records(monkeypatch):
    monkeypatch.setattr(training_module, "LOG_EVERY", 2)


@pytest.mark.parametrize(
    ("recipe", "factors"),
    [
        (Finetune(steps=4, schedule="constant"), {0: 1.0, 3: 1.0}),
        (Finetune(steps=4, schedule="cosine"), {0: 1.0, 1: 0.853553, 2: 0.5, 3: 0.146447}),
        (
            Finetune(steps=10, schedule="step", milestones=(0.5, 0.8)),
            {0: 1.0, 4: 1.0, 5: 0.1, 7: 0.1, 8: 0.01, 9: 0.01},
        ),
        (Finetune(steps=10, schedule="step"), {0: 1.0, 9: 1.0}),
    ],
    ids=["constant", "cosine", "step", "step without milestones"],
)
def test_schedule(recipe, factors):
    for step, factor in factors.items():
        assert rate_factor(recipe, step) == pytest.approx(factor, rel=1e-5)


def test_schedule_reaches_the_optimizer_and_the_log():
    run = make_loop(
        finetune__steps=4,
        finetune__learning_rate=1e-3,
        finetune__range_learning_rate=1e-2,
        quantization__learn_ranges=True,
    )
    rates = []
    step = run.iteration.optimizer.step
    run.iteration.optimizer.step = lambda: (
        rates.append([g["lr"] for g in run.iteration.optimizer.param_groups]),
        step(),
    )
    history = run.run()
    for done, (weights, ranges) in enumerate(rates):
        factor = 0.5 * (1 + math.cos(math.pi * done / 4))
        assert (weights, ranges) == (pytest.approx(1e-3 * factor), pytest.approx(1e-2 * factor))
    assert [record["learning_rate"] for record in history] == [rates[1][0], rates[3][0]]


def test_sgd_with_momentum_and_decay_by_hand():
    """One parameter, its gradient given: Nesterov momentum on top of the decayed gradient."""
    net = torch.nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(
        net, Finetune(learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    )
    weight, velocity = net.weight.item(), 0.0
    for gradient in (1.0, -0.5, 2.0):
        net.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        decayed = gradient + 0.01 * weight
        velocity = 0.9 * velocity + decayed
        weight -= 0.1 * (decayed + 0.9 * velocity)
        assert net.weight.item() == pytest.approx(weight, rel=1e-5)


def test_ranges_have_their_own_rate_and_no_decay():
    run = make_loop(quantization__learn_ranges=True, finetune__range_learning_rate=0.5)
    weights, ranges = run.iteration.optimizer.param_groups
    gains = {id(p) for n, p in run.iteration.student.named_parameters() if n.endswith("gain")}
    assert {id(p) for p in ranges["params"]} == gains and len(gains) == 2
    assert (ranges["lr"], ranges["weight_decay"]) == (0.5, 0.0)
    assert not gains & {id(p) for p in weights["params"]}
    assert weights["weight_decay"] == 1e-4
    assert len(make_loop().iteration.optimizer.param_groups) == 1


def test_momentum_zero_is_allowed(tmp_path):
    path = tmp_path / "c.safetensors"
    make_loop(path, finetune__momentum=0.0).run()
    run = make_loop(path, finetune__momentum=0.0)
    assert run.resume() and run.done == 6


def test_history_holds_window_means():
    run = make_loop(finetune__steps=5)
    each = []
    advance = run.advance
    run.advance = lambda: (each.append(advance()), each[-1])[1]
    reported = []
    history = run.run(reported.append)
    assert reported == history
    assert [record["step"] for record in history] == [2, 4, 5]
    values = torch.stack(each)
    for record, window in zip(history, (values[0:2], values[2:4], values[4:5]), strict=True):
        for name, mean in zip(run.iteration.step.term_names, window.mean(0).tolist(), strict=True):
            assert record[name] == pytest.approx(mean, rel=1e-6)
        assert set(record) == {"step", "learning_rate", *run.iteration.step.term_names}


def test_training_lowers_the_loss():
    run = make_loop(finetune__steps=60, finetune__learning_rate=1e-4)
    history = run.run()

    def total(records):
        return sum(
            sum(v for k, v in r.items() if k not in ("step", "learning_rate")) for r in records
        )

    assert total(history[-10:]) < 0.8 * total(history[:10])


@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_gradient_norm_limit(limit):
    run = make_loop(finetune__max_gradient_norm=limit, finetune__steps=1)
    norms = []
    step = run.iteration.optimizer.step

    def measured():
        gradients = [p.grad.norm() for p in run.iteration.trained()]
        norms.append(torch.stack(gradients).norm().item())
        step()

    run.iteration.optimizer.step = measured
    run.run()
    if limit:
        assert norms[0] == pytest.approx(limit, rel=1e-4)
    else:
        assert norms[0] > 1
