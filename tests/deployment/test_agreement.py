import pytest
import torch

from synq_fast.deployment.agreement import agreement


def test_equal_logits_agree():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    found = agreement(logits, logits.clone())
    assert (found.top1, found.decided, found.median, found.percentile_99) == (1, 1, 0, 0)


def test_near_ties_are_told_from_wrong_answers():
    expected = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.501], [2.0, 0.0]])
    tied = expected.clone()
    tied[2] = torch.tensor([0.502, 0.5])
    found = agreement(expected, tied)
    assert found.top1 == 0.75 and found.decided == 1.0
    wrong = tied.clone()
    wrong[3] = torch.tensor([1.9, 2.0])
    # Among 404 images, 99 of 100 logits are equal: then the near tie counts as well.
    many = (
        torch.cat([expected, expected[:1].expand(400, 2)]),
        torch.cat([wrong, expected[:1].expand(400, 2)]),
    )
    found = agreement(*many)
    assert found.decided == pytest.approx(402 / 404)


def test_nan_agrees_with_nothing():
    expected = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    found = agreement(expected, torch.full((2, 2), torch.nan))
    assert found.median == float("inf")


def test_differences_are_relative_to_the_logits():
    logits = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    one = agreement(logits, logits + 1e-3)
    large = agreement(1e4 * logits, 1e4 * (logits + 1e-3))
    assert one.median == pytest.approx(large.median, rel=1e-2)
    assert one.median == pytest.approx(1e-3 / float(logits.square().mean().sqrt()), rel=1e-2)
