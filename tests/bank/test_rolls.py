import pytest
import torch

from synq_fast.bank.rolls import random_roll, roll


@pytest.mark.parametrize("mirrored", [0, 1])
@pytest.mark.parametrize("moves", [(0, 0), (2, -1), (-5, 9)])
def test_images_are_mirrored_and_moved_as_torch_does_it(moves, mirrored):
    x = torch.randn(2, 3, 5, 7, requires_grad=True)
    moved = roll(x, torch.tensor([*moves, mirrored]))
    other = torch.roll(x, moves, (2, 3))
    assert torch.equal(moved, other.flip(3) if mirrored else other)
    moved.square().sum().backward()
    assert torch.allclose(x.grad, 2 * x)


def test_moves_are_drawn_within_the_limit():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([random_roll(3, generator) for _ in range(400)])
    assert drawn[:, :2].unique().tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert drawn[:, 2].unique().tolist() == [0, 1]
    assert drawn[:, 2].float().mean().item() == pytest.approx(0.5, abs=0.1)
