"""Reconstruction of networks that call one layer in several blocks."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from synq_fast.finetune.reconstruction import TrainedBlock
from synq_fast.optimize.loop import Loop
from tests.tiny import CLASSES, SHAPE, equal_states, randomize_statistics, run

FEW = {
    "blocks.images": 8,
    "blocks.steps": 4,
    "blocks.batch_size": 4,
    "finetune.steps": 0,
    "finetune.perturbation.weight": 0.0,
}
TRAINED = ("weight", "gain")


class Repeating(nn.Module):
    """A stem, three residual blocks around one convolution, a head; a BatchNorm for each call."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(SHAPE[0], 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.again = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        for norm in self.norms:
            x = functional.relu(x + norm(self.again(x)))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def repeating() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = Repeating()
    return randomize_statistics(net, 5).eval()


def small(rounding: str, **options: object):
    overrides = {**FEW, "blocks.rounding": rounding, **options.pop("overrides", {})}
    return run(repeating(), recipe="synq-fast-digits", overrides=overrides, **options)


@pytest.mark.parametrize("rounding", ["soft", "straight"])
def test_a_layer_of_several_blocks_is_trained_in_the_first(monkeypatch, rounding):
    harden = TrainedBlock.harden
    states: list[dict[str, Tensor]] = []

    def noted(self: TrainedBlock) -> None:
        harden(self)
        states.append({n: v.clone() for n, v in self.network.state_dict().items()})

    monkeypatch.setattr(TrainedBlock, "harden", noted)
    result, start = small(rounding), small(rounding, overrides={"blocks.steps": 0})
    monkeypatch.undo()
    final, untouched = result.model.state_dict(), start.model.state_dict()
    blocks = list(dict.fromkeys(record["block"] for record in result.history))
    assert len(blocks) == len(states) == 5
    for name in TRAINED:
        name = f"again.{name}"
        assert not torch.equal(final[name], untouched[name])
        found = [v for state in states for n, v in state.items() if n.endswith(name)]
        assert len(found) >= 3
        assert all(torch.equal(value, final[name]) for value in found)
    gains = [n for n in final if n.startswith("quantize_") and n.endswith("gain")]
    # Every block has something to train, those with no layer of their own their range.
    assert len(gains) >= 4
    assert all(not torch.equal(final[name], untouched[name]) for name in gains)


@pytest.mark.parametrize("rounding", ["soft", "straight"])
def test_killed_where_the_layer_comes_again_it_ends_in_the_same_bits(tmp_path, rounding):
    expected, advance = small(rounding), Loop.advance

    for block in (2, 3):

        def killed(self, block=block):
            index = getattr(self.iteration, "index", -1)
            if index == block and self.done == 2:
                raise KeyboardInterrupt
            return advance(self)

        folder = tmp_path / str(block)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Loop, "advance", killed)
            small(rounding, output=folder)
        resumed = small(rounding, output=folder, resume=True)
        assert equal_states(resumed.model, expected.model)
        assert resumed.history == expected.history
