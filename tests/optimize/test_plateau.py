"""The device's plateau schedule against torch's."""

import pytest
import torch

from synq_fast.optimize.plateau import Plateau


def rates(losses, patience, smallest):
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], 0.5)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=patience, min_lr=smallest
    )
    rate = torch.tensor(0.5)
    ours = Plateau(rate, patience, smallest)
    pairs = []
    for loss in losses:
        torchs.step(loss)
        ours.step(torch.tensor(loss))
        pairs.append((rate.item(), optimizer.param_groups[0]["lr"]))
    return pairs, ours


@pytest.mark.parametrize("patience", [0, 1, 5])
@pytest.mark.parametrize("smallest", [0.0, 1e-4, 0.05])
def test_rates_are_those_of_torch(patience, smallest):
    generator = torch.Generator().manual_seed(patience)
    noise = torch.rand(200, generator=generator)
    losses = (noise + torch.linspace(2, 0.5, 200)).tolist()
    pairs, _ = rates(losses, patience, smallest)
    ours, torchs = zip(*pairs, strict=True)
    assert ours == pytest.approx(torchs, rel=1e-5)
    assert len(set(torchs)) > 1, "the rate never fell, so nothing was compared"


def test_tiny_gains_count_as_none():
    pairs, _ = rates([1.0, 0.99995, 0.99992, 0.5], 1, 0.0)
    assert pairs == [(pytest.approx(a), pytest.approx(a)) for a in (0.5, 0.5, 0.05, 0.05)]


def test_state_decides_what_follows():
    losses = [3.0, 2.0, 2.5, 2.5, 2.5, 1.0, 1.5, 1.5, 1.5]
    whole, _ = rates(losses, 2, 1e-4)
    _, first = rates(losses[:4], 2, 1e-4)
    again = Plateau(torch.tensor(0.5), 2, 1e-4)
    again.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    rest = []
    for loss in losses[4:]:
        again.step(torch.tensor(loss))
        rest.append(again.rate.item())
    assert rest == pytest.approx([ours for ours, _ in whole[4:]])
