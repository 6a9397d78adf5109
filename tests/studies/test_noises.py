"""Kinds of noise, by their definition."""

import numpy as np
import pytest
import torch

from synq_fast.studies.noises import KINDS, noisy

VALID = (torch.full((3, 1, 1), -2.0), torch.full((3, 1, 1), 2.5))


def images(side: int = 32) -> torch.Tensor:
    return torch.randn(24, 3, side, side, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.3


def added(kind: str, strength: float = 1.0, seed: int = 0) -> torch.Tensor:
    return noisy(images(), kind, strength, VALID, seed).double() - images().double()


@pytest.mark.parametrize("kind", KINDS)
def test_its_mean_square_is_the_strength(kind):
    deviation = float(images().double().std())
    # A block's value counts for 16 pixels, so that chance averages out less.
    chance = 0.05 if kind in ("blocks", "salt-and-pepper") else 0.02
    for strength in (0.3, 1.0):
        root = float(added(kind, strength).square().mean().sqrt())
        assert root == pytest.approx(strength * deviation, rel=chance)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_it(kind):
    assert torch.equal(added(kind), added(kind))
    assert not torch.equal(added(kind), added(kind, seed=1))
    if kind != "salt-and-pepper":
        assert torch.allclose(2 * added(kind, 0.5), added(kind, 1.0), atol=1e-5)


def energy(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Energy of the noise by spatial frequency in cycles per pixel."""
    power = np.abs(np.fft.fft2(added(kind).numpy())) ** 2
    y = np.fft.fftfreq(32)
    return np.hypot(y[:, None], y[None]), power.mean((0, 1))


def test_bands():
    radius, power = energy("high-frequency")
    assert power[radius < 0.25].max() < 1e-6 * power.max() < power[radius >= 0.25].min()
    radius, power = energy("low-frequency")
    outside = (radius > 0.125) | (radius == 0)
    assert power[outside].max() < 1e-6 * power.max()
    assert power[~outside].min() > 0.3 * power.max()
    _, power = energy("white")
    assert power.min() > 0.4 * power.mean()


def test_blocks_have_one_value_each():
    noise = added("blocks").reshape(24, 3, 8, 4, 8, 4)
    assert float((noise - noise[:, :, :, :1, :, :1]).abs().max()) < 1e-6
    small = noisy(torch.zeros(2, 1, 7, 5) + torch.arange(5), "blocks", 1.0, VALID, 0)
    assert small.shape == (2, 1, 7, 5)


def test_salt_and_pepper_sets_whole_pixels_to_the_ends():
    seen, before = noisy(images(), "salt-and-pepper", 0.5, VALID, 0), images()
    changed = seen != before
    assert torch.equal(changed.all(1), changed.any(1))
    assert set(seen[changed].unique().tolist()) == {-2.0, 2.5}
    everywhere = noisy(images(), "salt-and-pepper", 100.0, VALID, 0)
    assert set(everywhere.unique().tolist()) == {-2.0, 2.5}
