"""Images of a bank that look otherwise in each batch."""

import pytest
import torch

from synq_fast.bank.batches import BatchSource, Filter
from synq_fast.bank.images import ImageBank
from synq_fast.bank.source import BankSource
from synq_fast.bank.variety import Variety, drawn_looks, varied

WHOLE = (1.0, 1.0)
NONE = Filter("none")
ALL = Variety(softest=2.0, sharpest=30.0, contrast=0.4, brightness=1.0)


def images(count=6, size=16):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def bank(count=6):
    return ImageBank(images(count), torch.arange(count))


def looks(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def test_nothing_asked_for_changes_nothing():
    plain = BatchSource(bank(), 4, (0.5, 1.0), Filter(), 3)
    off = BatchSource(bank(), 4, (0.5, 1.0), Filter(), 3, variety=Variety())
    assert all(torch.equal(a, b) for a, b in zip(plain(2), off(2), strict=True))
    assert len(off.inputs(2)) == 3


def test_contrast_and_brightness_are_affine():
    x = images(3)
    recipe = Variety(contrast=0.4, brightness=0.5)
    y = varied(x, looks([0, 0.5, 0.5], [0, 1, 0.5], [0, 0, 1]), recipe)
    assert torch.allclose(y[0], x[0])
    assert torch.allclose(y[1], x[1].mean() + 1.4 * (x[1] - x[1].mean()), atol=1e-6)
    deviation = x[2].std(correction=0)
    assert torch.allclose(
        y[2], x[2].mean() + 0.6 * (x[2] - x[2].mean()) + 0.5 * deviation, atol=1e-6
    )


def test_it_does_not_matter_how_pixels_are_normalised():
    x = images()
    drawn = drawn_looks(len(x), 0, 0)
    assert torch.allclose(
        varied(0.25 * x + 0.5, drawn, ALL), 0.25 * varied(x, drawn, ALL) + 0.5, atol=1e-5
    )


def test_a_wave_is_damped_as_a_gaussian_damps_it():
    """The response at f cycles is exp(-f^2 / (2 D^2)); contrast comes back, up to three times."""
    at = torch.arange(32, dtype=torch.float64) * (2 * torch.pi / 32)
    low, high = torch.cos(at).float(), torch.cos(4 * at).float()
    x = (low + high).expand(1, 1, 32, 32) + 5.0
    y = varied(x, looks([0, 0.5, 0.5]), Variety(softest=4.0, sharpest=4.0))
    spectrum = torch.fft.rfft(y[0, 0, 0])
    ratio = (spectrum[4] / spectrum[1]).abs()
    assert ratio == pytest.approx(float(torch.exp(torch.tensor(-(16 - 1) / 32.0))), rel=1e-4)
    assert y.mean() == pytest.approx(5.0, rel=1e-5)
    assert y.std() == pytest.approx(float(x.std()), rel=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 8), (16, 16)])
def test_sizes_and_flat_images_stay_finite(size):
    drawn = looks([0, 0.2, 0.3], [1, 0.9, 0.1])
    x = torch.randn(2, 3, *size)
    y = varied(x, drawn, ALL)
    assert y.shape == x.shape and y.isfinite().all()
    flat = torch.full((2, 3, *size), 0.7)
    assert torch.allclose(varied(flat, drawn, ALL), flat, atol=1e-5)


def test_pixels_stay_valid():
    valid = torch.full((3, 1, 1), -0.5), torch.full((3, 1, 1), 0.25)
    source = BankSource(bank(), NONE, 0, ALL, valid).batches(4)
    batch, _ = source(0)
    assert batch.min() >= -0.5 and batch.max() <= 0.25


def test_each_batch_shows_an_image_otherwise_and_again_the_same():
    source = BatchSource(bank(1), 1, WHOLE, NONE, 0, variety=ALL)
    assert not torch.equal(source(0)[0], source(1)[0])
    again = BatchSource(bank(1), 1, WHOLE, NONE, 0, variety=ALL)
    assert torch.equal(source(3)[0], again(3)[0])


def test_ranks_see_their_parts_of_the_same_batch():
    whole = BatchSource(bank(), 4, WHOLE, NONE, 1, variety=ALL)(5)[0]
    parts = [
        BatchSource(bank(), 4, WHOLE, NONE, 1, slice(a, b), variety=ALL)(5)[0]
        for a, b in ((0, 1), (1, 4))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)


def test_looks_are_uniform_and_follow_seed_and_step():
    drawn = drawn_looks(4000, 0, 0)
    assert drawn.shape == (4000, 3) and drawn.min() >= 0 and drawn.max() < 1
    assert (drawn.mean(0) - 0.5).abs().max() < 0.02
    assert not torch.equal(drawn_looks(4, 0, 1), drawn_looks(4, 0, 0))
    assert not torch.equal(drawn_looks(4, 1, 0), drawn_looks(4, 0, 0))
