import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from synq_fast.bank.crops import crop, random_crops


def random_resized_crop_flip(images, scale, generator):
    return crop(images, random_crops(len(images), scale, generator))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinates(count: int, side: int = 64) -> torch.Tensor:
    """Images whose pixel values are their own x and y on -1..1 (pixel centres)."""
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y]).expand(count, 2, side, side).clone()


def crop_sizes(scale: tuple[float, float], count: int = 4000) -> tuple[torch.Tensor, ...]:
    """Relative width, height (signed by the mirror) and centre of each crop, from the images."""
    side = 64
    out = random_resized_crop_flip(coordinates(count, side), scale, generator())
    # Neighbours in the middle: borders repeat the edge where a crop touches it.
    width = (out[:, 0, 32, 40] - out[:, 0, 32, 24]) * side / 32
    height = (out[:, 1, 40, 32] - out[:, 1, 24, 32]) * side / 32
    return width, height, out[:, 0, 32, 31:33].mean(1), out[:, 1, 31:33, 32].mean(1)


def test_whole_image_is_identity_or_mirror():
    images = torch.randn(40, 3, 9, 12)
    out = random_resized_crop_flip(images, (1.0, 1.0), generator())
    same = [torch.allclose(o, i, atol=1e-5) for o, i in zip(out, images, strict=True)]
    mirrored = [torch.allclose(o, i.flip(-1), atol=1e-5) for o, i in zip(out, images, strict=True)]
    assert all(s != m for s, m in zip(same, mirrored, strict=True))
    assert 8 <= sum(same) <= 32


@given(low=st.floats(0.05, 1.0), high=st.floats(0.05, 1.0), seed=st.integers(0, 99))
def test_values_stay_inside_those_of_the_image(low, high, seed):
    images = torch.randn(3, 1, 7, 5, generator=generator(seed))
    scale = (min(low, high), max(low, high))
    out = random_resized_crop_flip(images, scale, generator(seed))
    flat, original = out.flatten(1), images.flatten(1)
    assert (flat.amax(1) <= original.amax(1) + 1e-5).all()
    assert (flat.amin(1) >= original.amin(1) - 1e-5).all()


def test_areas_are_uniform_and_aspects_bounded():
    width, height, _, _ = crop_sizes((0.4, 1.0))
    area = width.abs() * height
    assert area.min() > 0.4 - 1e-4 and area.max() < 1 + 1e-4
    # Quantiles of a uniform distribution; 4000 draws have a standard error below 0.005.
    quantiles = torch.quantile(area, torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]))
    expected = 0.4 + 0.6 * torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    assert (quantiles - expected).abs().max() < 0.03
    aspect = (width.abs() / height).log()
    assert aspect.abs().max() < math.log(4 / 3) + 1e-3
    assert aspect.mean().abs() < 0.02
    assert aspect.abs().max() > 0.9 * math.log(4 / 3)


def test_mirroring_is_a_fair_coin_and_nothing_is_upside_down():
    width, height, _, _ = crop_sizes((0.5, 1.0))
    assert 0.46 < (width < 0).float().mean() < 0.54
    assert (height > 0).all()


def test_crops_lie_inside_and_reach_every_border():
    width, height, x, y = crop_sizes((0.3, 0.5))
    for size, centre in ((width.abs(), x), (height, y)):
        room = 1 - size
        assert (centre.abs() <= room + 1e-3).all()
        share = centre / room
        assert share.min() < -0.98 and share.max() > 0.98
        assert share.mean().abs() < 0.04


def test_every_image_has_its_own_crop():
    image = torch.randn(1, 1, 8, 8).expand(6, 1, 8, 8)
    out = random_resized_crop_flip(image, (0.4, 0.9), generator())
    assert len({tuple(o.flatten().tolist()) for o in out}) == 6


def test_generator_decides():
    images = torch.randn(4, 2, 8, 8)
    first = random_resized_crop_flip(images, (0.4, 1.0), generator(3))
    assert torch.equal(first, random_resized_crop_flip(images, (0.4, 1.0), generator(3)))
    assert not torch.equal(first, random_resized_crop_flip(images, (0.4, 1.0), generator(4)))


def test_gradient_reaches_what_the_crop_shows():
    images = torch.randn(8, 1, 16, 16, requires_grad=True)
    random_resized_crop_flip(images, (0.2, 0.3), generator()).sum().backward()
    touched = (images.grad != 0).flatten(1).float().mean(1)
    assert (touched > 0.15).all() and (touched < 0.6).all()
    # Every output pixel is a mean of input pixels.
    assert torch.allclose(images.grad.flatten(1).sum(1), torch.full((8,), 256.0), rtol=1e-4)


def test_gradient_is_the_transpose_of_the_transform():
    x, y = torch.randn(2, 5, 1, 6, 6).double().unbind(0)
    x.requires_grad_()
    out = random_resized_crop_flip(x.float(), (0.4, 1.0), generator())
    (out * y.float()).sum().backward()
    moved = random_resized_crop_flip(torch.randn(5, 1, 6, 6), (0.4, 1.0), generator())
    assert moved.shape == out.shape
    assert torch.allclose((out * y.float()).sum(), (x.detach() * x.grad).sum().float(), rtol=1e-4)
